"""A model on ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import InferenceFailed
from matryo.engine.onnx.interface import SOLO_TOKENS
from matryo.engine.onnx.packed import find_packed
from matryo.engine.onnx.padding import pad
from matryo.engine.onnx.sessions import SessionConfig, SessionPool
from matryo.engine.postprocess import FloatArray, postprocess
from matryo.engine.protocol import BatchResult
from matryo.engine.tokenizer import Encoded, TextTokenizer, TokenIds
from matryo.store.artifact import DATA_FILE, GRAPH_FILE, Artifact


class OnnxEngine:
    """A model on ONNX Runtime.

    Args:
        manifest: the model.
        artifact: its artefact; every file that is used is hashed while the sessions load.
        config: use of the machine.

    Raises:
        ArtifactDamaged: a file is not the one that was built.
    """

    def __init__(self, manifest: Manifest, artifact: Artifact, config: SessionConfig) -> None:
        self.manifest = manifest
        self.precision: Precision = artifact.record.precision
        self.fingerprint = f"{manifest.id}/{self.precision}/{artifact.record.key}"
        packed = find_packed(artifact)
        if packed and not packed.intact():
            packed = None  # the artefact itself still serves
        if not packed:
            # Two sessions would hold the weights twice; one, of every core, costs a tenth of
            # the rate of concurrent runs.
            config = SessionConfig(config.lone_threads, config.lone_threads)
        graph_files = (GRAPH_FILE, DATA_FILE) if packed else ()
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(artifact.check_files, skip=graph_files)
            try:
                self._tokenizer = TextTokenizer(artifact.tokenizer, manifest.tokenizer.max_tokens)
                self._session = SessionPool(packed.graph if packed else artifact.graph, config)
            finally:
                checked.result()  # a damaged file explains whatever failed above

    def tokenize(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each text, special tokens included, uncut."""
        return self._tokenizer.encode(texts)

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to one less."""
        return self._tokenizer.vocab_size

    def from_ids(self, ids: Sequence[int], prefix: str) -> Encoded:
        """A text that comes as ids of this model; see `Engine.from_ids`."""
        return Encoded(self._tokenizer.from_ids(ids, prefix, self.manifest.prefixes))

    def cut(self, ids: TokenIds) -> TokenIds:
        """The ids cut to the model's limit."""
        return self._tokenizer.cut(ids)

    def embed(self, texts: Sequence[TokenIds], dimensions: Sequence[int]) -> BatchResult:
        """Vectors of a batch; see `Engine.embed`."""
        places = range(len(texts))
        long = [place for place in places if len(texts[place]) > SOLO_TOKENS]
        short = [place for place in places if len(texts[place]) <= SOLO_TOKENS]
        groups = ([short] if short else []) + [[place] for place in long]

        embeddings: list[FloatArray] = [np.empty(0, np.float32)] * len(texts)
        n_padding, inference_s, postprocess_s = 0, 0.0, 0.0
        for group in groups:
            started = time.perf_counter()
            batch = pad([texts[place] for place in group])
            hidden = self._session.run(batch, apply_mask=group is short)
            ran = time.perf_counter()
            sizes = [dimensions[place] for place in group]
            vectors = postprocess(hidden, batch.attention_mask, sizes, self.manifest.output)
            for place, vector in zip(group, vectors, strict=True):
                if not np.isfinite(vector).all():
                    raise InferenceFailed(f"{self.fingerprint}: the model gave NaN or infinity")
                embeddings[place] = vector
            n_padding += 0 if self._session.packs_tokens else batch.n_padding
            inference_s += ran - started
            postprocess_s += time.perf_counter() - ran
        return BatchResult(embeddings, n_padding, inference_s, postprocess_s)

    def hidden_states(self, ids: TokenIds) -> FloatArray:
        """Last hidden states `(T, H)` of one text, as `embed` pools them; for checks.

        Raises:
            InferenceFailed: the run raised.
        """
        return self._session.run(pad([ids]), apply_mask=len(ids) <= SOLO_TOKENS)[0]

    def close(self) -> None:
        """Make runs under way fail soon."""
        self._session.interrupt()
