"""OpenVINO as a peer: f32, bf16, 8-bit weights, or static int8, each with its own settings."""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench.peers.protocol import Ids, Vectors, serve
from bench.peers.torch_model import Spec, make_module

KINDS = ("f32", "bf16", "weights8", "static8")
_MODULE = "bench.peers.with_openvino"
_GROUPS = (0, 32, 64)
_CALIBRATION_TEXTS, _CALIBRATION_TOKENS = 300, 256


class OpenVino:
    """A model in OpenVINO on the CPU; `Peer` describes its attributes and methods.

    Args:
        spec: the model.
        kind: one of `KINDS`.
        bf16: whether the CPU computes bf16, which is then a setting of the 8-bit kinds.
    """

    about: str
    settings: Sequence[str]

    def __init__(self, spec: Spec, kind: str, *, bf16: bool) -> None:
        self._ov: Any = importlib.import_module("openvino")
        self._core: Any = self._ov.Core()
        self._spec, self._kind = spec, kind
        weights, hints, groups = ("f32",), (kind,), (None,)
        if kind in ("weights8", "static8"):
            hints = ("f32", "bf16") if bf16 else ("f32",)
        if kind == "weights8":
            weights, groups = ("int8_asym", "int8_sym"), _GROUPS
        elif kind == "static8":
            weights = ("static8",)
        self._configs: dict[str, tuple[str, dict[str, Any], int]] = {}
        for weight, hint, group, streams in itertools.product(
            weights, hints, groups, (spec.cores, 1)
        ):
            config = {
                "INFERENCE_PRECISION_HINT": hint,
                "INFERENCE_NUM_THREADS": spec.cores,
                "NUM_STREAMS": streams,
            }
            name = f"{weight}, hint {hint}, {streams} x {spec.cores // streams} threads"
            if group is not None:
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
                name += f", activations in groups of {group}"
            self._configs[name] = weight, config, streams
        self.settings = tuple(self._configs)
        self.about = f"OpenVINO {self._ov.__version__}, {kind}"

    def runner(self, setting: str) -> tuple[Callable[[Ids], object], int]:
        """See `Peer.runner`."""
        _, _, streams = self._configs[setting]
        compiled = self._compiled(setting)
        requests = [compiled.create_infer_request() for _ in range(streams)]
        free = list(requests)

        def run(ids: Ids) -> None:
            request = free.pop()  # one for each caller; a list's methods are atomic
            request.infer([ids])
            free.append(request)

        return run, streams

    @functools.lru_cache(maxsize=32)  # noqa: B019 - there is one object, as long as the process
    def _compiled(self, setting: str) -> Any:  # noqa: ANN401 - OpenVINO has no types here
        weight, config, _ = self._configs[setting]
        return self._core.compile_model(self._model(weight, masked=False), "CPU", config)

    def vectors(self, texts: Sequence[Sequence[int]], setting: str) -> Vectors:
        """See `Peer.vectors`."""
        width = max(map(len, texts))
        ids, mask = np.zeros((2, len(texts), width), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        return np.array(self._masked(setting).infer([ids, mask])[0])

    @functools.cache  # noqa: B019
    def _masked(self, setting: str) -> Any:  # noqa: ANN401
        weight, config, _ = self._configs[setting]
        model = self._model(weight, masked=True)
        return self._core.compile_model(model, "CPU", config).create_infer_request()

    def _model(self, weight: str, *, masked: bool) -> Any:  # noqa: ANN401
        """The graph with such weights, read from the cache, or made and cached."""
        path = self._spec.cache / f"{weight}-{'masked' if masked else 'unmasked'}.xml"
        if not path.exists():  # a process of its own gives back the memory that this takes
            making = ["--make", weight, *(["--masked"] if masked else [])]
            command = [sys.executable, "-m", _MODULE, "--spec", str(self._spec.path), *making]
            subprocess.run(command, check=True)  # noqa: S603 - this module
        return self._core.read_model(path)


def make(spec: Spec, weight: str, *, masked: bool) -> None:
    """Write the graph with such weights into the cache.

    Args:
        spec: the model.
        weight: `f32`, `int8_asym`, `int8_sym` or `static8`.
        masked: whether the graph takes a mask.
    """
    ov: Any = importlib.import_module("openvino")
    torch: Any = importlib.import_module("torch")
    ids, mask = torch.ones((2, 2, 5), dtype=torch.int64)
    with torch.no_grad():
        example = (ids, mask) if masked else (ids,)
        model = ov.convert_model(make_module(spec, masked=masked), example_input=example)
    for port in model.inputs:
        port.get_node().set_partial_shape(ov.PartialShape([-1, -1]))
        port.get_node().set_element_type(ov.Type.i64)
    model.validate_nodes_and_infer_types()
    if weight == "static8":
        model = _quantized(spec, model, masked=masked)
    elif weight != "f32":
        nncf: Any = importlib.import_module("nncf")
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode(weight))
    part = spec.cache / f"part-{weight}.xml"
    ov.save_model(model, part, compress_to_fp16=False)
    final = spec.cache / f"{weight}-{'masked' if masked else 'unmasked'}.xml"
    part.with_suffix(".bin").rename(final.with_suffix(".bin"))
    part.rename(final)


def _quantized(spec: Spec, model: Any, *, masked: bool) -> Any:  # noqa: ANN401
    nncf: Any = importlib.import_module("nncf")
    texts = json.loads(spec.texts.read_text("utf-8"))[-_CALIBRATION_TEXTS:]

    def feed(ids: Sequence[int]) -> list[Ids]:
        row = np.array([ids[:_CALIBRATION_TOKENS]], np.int64)
        return [row, np.ones_like(row)] if masked else [row]

    return nncf.quantize(
        model,
        nncf.Dataset(texts, feed),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=_CALIBRATION_TEXTS,
    )


def main() -> None:
    """Serve one kind, or make a graph."""
    # Telemetry forks this process while threads run, which stopped it for good. OpenVINO and NNCF
    # do without the module.
    cast("dict[str, Any]", sys.modules)["openvino_telemetry"] = None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--make", help="weights of a graph to make, instead of serving")
    parser.add_argument("--masked", action="store_true", help="make a graph that takes a mask")
    given = parser.parse_args()
    spec = Spec.read(given.spec)
    if given.make:
        make(spec, given.make, masked=given.masked)
    else:
        serve(lambda: OpenVino(spec, given.kind, bf16=given.bf16))


if __name__ == "__main__":
    main()
