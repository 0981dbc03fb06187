"""llama.cpp as a peer, on a GGUF in Q8_0."""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.protocol import Ids, Vectors, serve
from bench.peers.torch_model import Spec

GGUF = "q8_0.gguf"


Library = Any
Model = Any
"""Of llama.cpp, which has no types here."""


class _Context:
    """A context of llama.cpp, which one thread uses at a time.

    Args:
        llama: the module.
        model: the loaded model.
        n_tokens: most tokens of a batch.
        n_texts: most texts of a batch.
        threads: of a run.
        flash: 1 for flash attention, 0 for none.
    """

    def __init__(
        self, llama: Library, model: Model, n_tokens: int, n_texts: int, threads: int, flash: int
    ) -> None:
        self._llama = llama
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = n_tokens
        options.n_seq_max = n_texts
        options.n_threads = options.n_threads_batch = threads
        options.embeddings = options.kv_unified = True
        options.pooling_type = llama.LLAMA_POOLING_TYPE_MEAN
        options.flash_attn_type = flash
        self._context = llama.llama_init_from_model(model, options)
        self._batch = llama.llama_batch_init(n_tokens, 0, 1)
        self._width = llama.llama_model_n_embd(model)

    def run(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """Means of the hidden states, `(B, H)`."""
        batch, n_tokens = self._batch, 0
        for text, ids in enumerate(texts):
            for position, token in enumerate(ids):
                batch.token[n_tokens] = token
                batch.pos[n_tokens] = position
                batch.n_seq_id[n_tokens] = 1
                batch.seq_id[n_tokens][0] = text
                batch.logits[n_tokens] = 1
                n_tokens += 1
        batch.n_tokens = n_tokens
        if self._llama.llama_encode(self._context, batch):
            raise SystemExit(f"llama.cpp failed on a batch of {n_tokens} tokens")
        rows = [
            np.ctypeslib.as_array(
                self._llama.llama_get_embeddings_seq(self._context, text), (self._width,)
            ).copy()
            for text in range(len(texts))
        ]
        return np.stack(rows)


class Llama:
    """A model in llama.cpp; `Peer` describes its attributes and methods."""

    about: str
    settings: Sequence[str]

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._llama: Any = importlib.import_module("llama_cpp")
        options = self._llama.llama_model_default_params()
        path = str(spec.cache / GGUF).encode()
        self._model = self._llama.llama_model_load_from_file(path, options)
        self._ways: dict[str, tuple[int, int]] = {}
        for runs, flash in itertools.product((spec.cores, 1), (1, 0)):
            attention = "flash attention" if flash else "plain attention"
            self._ways[f"{runs} x {spec.cores // runs} threads, {attention}"] = runs, flash
        self.settings = tuple(self._ways)
        features = self._llama.llama_print_system_info().decode()
        on = [part.partition(" = ")[0].split()[-1] for part in features.split("|") if "= 1" in part]
        version = self._llama.__version__
        self.about = f"llama.cpp of llama-cpp-python {version}, Q8_0, built with {' '.join(on)}"

    def runner(self, setting: str) -> tuple[Callable[[Ids], object], int]:
        """See `Peer.runner`."""
        runs, _ = self._ways[setting]
        free: list[int] = list(range(runs))

        def run(ids: Ids) -> None:
            index = free.pop()  # one for each caller; a list's methods are atomic
            self._context(setting, index, ids.size, len(ids)).run(ids.tolist())
            free.append(index)

        return run, runs

    def vectors(self, texts: Sequence[Sequence[int]], setting: str) -> Vectors:
        """See `Peer.vectors`. llama.cpp computes no layer norm after the mean; NumPy does."""
        x = self._context(setting, 0, 8192, 16).run(texts)
        if (eps := self._spec.layer_norm_eps) is not None:
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - there is one object, as long as the process
    def _context(self, setting: str, index: int, n_tokens: int, n_texts: int) -> _Context:
        del index  # each caller has a context of its own
        runs, flash = self._ways[setting]
        threads = self._spec.cores // runs
        return _Context(self._llama, self._model, n_tokens, n_texts, threads, flash)


def main() -> None:
    """Serve the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    given = parser.parse_args()
    serve(lambda: Llama(Spec.read(given.spec)))


if __name__ == "__main__":
    main()
