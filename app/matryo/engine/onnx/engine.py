"""The engine that runs a model on ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import ArtifactDamaged, InferenceFailed
from matryo.engine.cores import CoreUse
from matryo.engine.dense import load_dense
from matryo.engine.interrupt import Interrupt
from matryo.engine.onnx.interface import SOLO_TOKENS
from matryo.engine.onnx.limits import cpu_limits
from matryo.engine.onnx.padding import pad
from matryo.engine.onnx.prepacked import PrepackedGraph, find_prepacked
from matryo.engine.onnx.runtime import ORT_VERSION
from matryo.engine.onnx.sessions import SessionPool
from matryo.engine.postprocess import FloatArray, postprocess
from matryo.engine.protocol import BatchResult, EngineFacts
from matryo.engine.tokenizer import Encoded, Pieces, Side, TextTokenizer, TokenIds
from matryo.store.artifact import DATA_FILE, GRAPH_FILE, TOKENIZER_FILE, Artifact
from matryo.store.files import sha256_file


class OnnxEngine:
    """A model on ONNX Runtime; `Engine` describes its methods.

    Args:
        manifest: the model.
        artifact: the model's artefact. The hash of every file that the engine reads is checked
            while the sessions load.
        use: the cores. Every engine of this process must get the same object.

    Raises:
        ArtifactDamaged: a file is not the one that was built, or cannot be loaded.
    """

    def __init__(self, manifest: Manifest, artifact: Artifact, use: CoreUse) -> None:
        self.manifest = manifest
        self.precision: Precision = artifact.record.precision
        self.fingerprint = artifact.record.fingerprint
        self.facts = EngineFacts(
            weights_sha256=artifact.record.checkpoint_sha256,
            tokenizer_sha256=artifact.record.tokenizer_sha256,
            artifact_sha256=artifact.record.files_sha256,
            native=artifact.record.native,
            onnxruntime=ORT_VERSION,
        )
        # The library may crash on a damaged tokenizer, which is therefore checked before.
        artifact.check_files(skip=artifact.record.files.keys() - {TOKENIZER_FILE})
        self._tokenizer = TextTokenizer(
            artifact.tokenizer,
            manifest.tokenizer.max_tokens,
            manifest.prefixes,
            add_special_tokens=manifest.tokenizer.add_special_tokens,
            drop_unknown=manifest.tokenizer.drop_unknown,
        )
        prepacked = find_prepacked(artifact)
        if prepacked:
            prepacked.hold(self)  # no other process removes the files while this engine lives
        session = None
        if prepacked and _may_load(prepacked):
            session = self._load_prepacked(artifact, prepacked, use)
        if session is None:
            if not artifact.record.native:
                # Two sessions would hold the weights twice. One session with a thread for every
                # core lowers the rate of concurrent runs by a tenth.
                use = replace(use, threads=use.lone_threads)
            session = self._load(artifact, use)
        self._session = session
        self.limits = cpu_limits(use)
        try:
            self._layers = load_dense(artifact.dense, manifest.output.dense)
        except (OSError, ValueError) as exc:
            raise ArtifactDamaged(f"{exc}. Build the model again with matryo build.") from exc

    def _load_prepacked(
        self, artifact: Artifact, prepacked: PrepackedGraph, use: CoreUse
    ) -> SessionPool | None:
        """The prepacked graph, hashed while it loads; None if one of its files is damaged."""
        with ThreadPoolExecutor(1) as pool:
            intact = pool.submit(prepacked.intact)
            check = pool.submit(artifact.check_files, skip={TOKENIZER_FILE, GRAPH_FILE, DATA_FILE})
            try:
                session = SessionPool(prepacked.graph, use, self.manifest.output)
            except ArtifactDamaged:
                if intact.result():
                    raise
                return None
            finally:
                check.result()
            return session if intact.result() else None

    def _load(self, artifact: Artifact, use: CoreUse) -> SessionPool:
        """The artefact's own graph, hashed while it loads."""
        with ThreadPoolExecutor(1) as pool:
            check = pool.submit(artifact.check_files, skip={TOKENIZER_FILE})
            try:
                return SessionPool(
                    artifact.graph,
                    use,
                    self.manifest.output,
                    artifact.weights,
                    native=artifact.record.native > 0,
                )
            finally:
                check.result()  # a damaged file is the cause of any failure above

    @property
    def vocab_size(self) -> int:
        """Number of token ids; see `Engine.vocab_size`."""
        return self._tokenizer.vocab_size

    @property
    def unknown_id(self) -> int | None:
        """Token id of everything that the vocabulary lacks; see `Engine.unknown_id`."""
        return self._tokenizer.unknown_id

    def tokenize(
        self, texts: Sequence[str], prefix: str = "", side: Side = "start"
    ) -> list[Encoded]:
        """Token ids of each text; see `Engine.tokenize`."""
        return self._tokenizer.encode(texts, prefix, side)

    def pieces(
        self, texts: Sequence[str], prefix: str = "", *, add_special_tokens: bool = True
    ) -> list[Pieces]:
        """Tokens of each text, with their strings; see `Engine.pieces`."""
        return self._tokenizer.pieces(texts, prefix, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The string of token ids; see `Engine.decode`."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def from_ids(self, ids: Sequence[int], prefix: str) -> Encoded:
        """Token ids of a text that comes as ids of this model; see `Engine.from_ids`."""
        return Encoded(self._tokenizer.from_ids(ids, prefix))

    def cut(self, ids: TokenIds, side: Side = "start") -> TokenIds:
        """The ids, cut to the model's limit; see `Engine.cut`."""
        return self._tokenizer.cut(ids, side)

    def embed(
        self,
        texts: Sequence[TokenIds],
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,
        interrupt: Interrupt | None = None,
    ) -> BatchResult:
        """Vectors of a batch; see `Engine.embed`."""
        normalize = [True] * len(texts) if normalize is None else normalize
        indexes = range(len(texts))
        long = [index for index in indexes if len(texts[index]) > SOLO_TOKENS]
        short = [index for index in indexes if 0 < len(texts[index]) <= SOLO_TOKENS]
        groups = ([short] if short else []) + [[index] for index in long]
        empty = [index for index in indexes if not len(texts[index])]

        embeddings: list[FloatArray] = [np.empty(0, np.float32)] * len(texts)
        n_padding, inference_s, postprocess_s = 0, 0.0, 0.0
        for group in groups:
            started = time.perf_counter()
            batch = pad([texts[index] for index in group])
            hidden = self._session.run(batch, apply_mask=group is short, interrupt=interrupt)
            ran = time.perf_counter()
            sizes = [dimensions[index] for index in group]
            vectors = postprocess(
                hidden,
                batch.attention_mask,
                sizes,
                self.manifest.output,
                self._layers,
                [normalize[index] for index in group],
            )
            for index, vector in zip(group, vectors, strict=True):
                if not np.isfinite(vector).all():
                    raise InferenceFailed(f"{self.fingerprint}: the model gave NaN or infinity")
                embeddings[index] = vector
            n_padding += self._session.n_padding(batch)
            inference_s += ran - started
            postprocess_s += time.perf_counter() - ran
        if empty:
            started = time.perf_counter()
            vectors = self._without_tokens(
                [dimensions[index] for index in empty], [normalize[index] for index in empty]
            )
            for index, vector in zip(empty, vectors, strict=True):
                embeddings[index] = vector
            postprocess_s += time.perf_counter() - started
        return BatchResult(embeddings, n_padding, inference_s, postprocess_s)

    def _without_tokens(
        self, dimensions: Sequence[int], normalize: Sequence[bool]
    ) -> list[FloatArray]:
        """Vectors of texts without a token: those of one hidden state of zeros."""
        shape = len(dimensions), 1
        output = self.manifest.output
        hidden = np.zeros((*shape, output.graph_width), np.float32)
        mask = np.ones(shape, np.int64)
        return postprocess(hidden, mask, dimensions, output, self._layers, normalize)

    def hidden_states(self, ids: TokenIds) -> FloatArray:
        """The graph's output for one text, `(T, H)` or `(H,)`; see `Engine.hidden_states`."""
        if not len(ids):
            return np.empty((0, self.manifest.output.graph_width), np.float32)
        return self._session.run(pad([ids]), apply_mask=len(ids) <= SOLO_TOKENS)[0]

    def close(self) -> None:
        """Make current and later runs fail; see `Engine.close`."""
        self._session.interrupt()


def _may_load(prepacked: PrepackedGraph) -> bool:
    """Whether the graph has its hash, which ONNX Runtime parses, and every file its size.

    Reading a page of a mapped file behind the file's end ends the process.
    """
    graph = prepacked.files.get(GRAPH_FILE)
    try:
        return bool(graph and sha256_file(prepacked.graph) == graph.sha256) and all(
            (prepacked.folder / name).stat().st_size == file.bytes
            for name, file in prepacked.files.items()
        )
    except OSError:
        return False
