"""FastEmbed as a peer: ONNX Runtime on a graph that torch exports, in fp32.

The model is a custom model of FastEmbed. Its texts are token ids already, and its graph ends in
unit vectors; both are to FastEmbed's advantage.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.protocol import Ids, Vectors, serve
from bench.peers.torch_model import Spec, make_module

_NAME, _GRAPH = "bench/model", "model.onnx"


class FastEmbed:
    """A model in FastEmbed; `Peer` describes its attributes and methods.

    Args:
        spec: the model.
    """

    about: str
    settings: Sequence[str]

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._library: Any = importlib.import_module("fastembed")
        describe: Any = importlib.import_module("fastembed.common.model_description")
        self._folder = spec.cache / "fastembed"
        if not (self._folder / _GRAPH).exists():
            self._export()
        self._library.TextEmbedding.add_custom_model(
            model=_NAME,
            pooling=describe.PoolingType.DISABLED,
            normalization=False,
            sources=describe.ModelSource(hf=_NAME),
            dim=int(spec.architecture["hidden_size"]),
            model_file=_GRAPH,
        )
        self._ways = {f"{runs} x {spec.cores // runs} threads": runs for runs in (spec.cores, 1)}
        self.settings = tuple(self._ways)
        ort: Any = importlib.import_module("onnxruntime")
        versions = f"{self._library.__version__} on ONNX Runtime {ort.__version__}"
        self.about = f"FastEmbed {versions}, a graph exported by torch, fp32"

    def _export(self) -> None:
        torch: Any = importlib.import_module("torch")
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._spec.tokenizer, self._folder)
        # FastEmbed wants these facts of a tokenizer, which token ids do not need.
        config = {"model_max_length": 1 << 16, "pad_token": "[PAD]"}
        (self._folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        ids, mask = torch.ones((2, 3, 7), dtype=torch.int64)  # two tensors, else one input
        axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
        part = self._folder / "part.onnx"
        torch.onnx.export(
            make_module(self._spec, masked=True),
            (ids, mask),
            str(part),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes=(axes, axes),
            dynamo=True,
            external_data=False,
        )
        part.rename(self._folder / _GRAPH)

    @functools.cache  # noqa: B019 - there is one object, as long as the process
    def _model(self, threads: int) -> Any:  # noqa: ANN401 - FastEmbed is not installed here
        embedding = self._library.TextEmbedding(
            _NAME, threads=threads, specific_model_path=str(self._folder)
        )
        return embedding.model

    def _embed(self, ids: Ids, mask: Ids, threads: int) -> Vectors:
        model = self._model(threads)
        found = model.model.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return np.asarray(found, np.float32)

    def runner(self, setting: str) -> tuple[Callable[[Ids], object], int]:
        """See `Peer.runner`."""
        runs = self._ways[setting]
        self._model(self._spec.cores // runs)
        return lambda ids: self._embed(ids, np.ones_like(ids), self._spec.cores // runs), runs

    def vectors(self, texts: Sequence[Sequence[int]], setting: str) -> Vectors:
        """See `Peer.vectors`."""
        width = max(map(len, texts))
        ids, mask = np.zeros((2, len(texts), width), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        return self._embed(ids, mask, self._spec.cores // self._ways[setting])


def main() -> None:
    """Serve the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    given = parser.parse_args()
    serve(lambda: FastEmbed(Spec.read(given.spec)))


if __name__ == "__main__":
    main()
