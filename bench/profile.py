"""Where the time of a run goes, by kind of operation, beside what this machine reaches.

    .venv/bin/python -m bench.profile --model nomic-embed-text-v1.5 --shape 4x128 --precision int8

ONNX Runtime's own profiler times every operation of some runs on one thread. The rate of products
and attention is in GFLOP/s (a multiplication and an addition count as two operations), that of all
others in GB/s of tensors read and written. The ceilings are the same rates of single operations on
tensors of the model's size, measured after the runs: products in fp32 and in bytes,
and a sum of two tensors. bf16 products are
measured if OpenVINO is installed, since ONNX Runtime has none on x86.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from matryo.assembly.models import make_ready
from matryo.build.emit import CONTRIB
from matryo.catalog.catalog import open_catalog
from matryo.core.choices import Kernels
from matryo.core.environment import load_settings
from matryo.engine.onnx.runtime import GraphSession, session_options
from matryo.store.artifact import Artifact, find_artifact
from matryo.store.layout import open_store

NATIVE_PRODUCTS = frozenset(("Linear", "QuantizedLinear"))  # of matryo-native; rounding is inside
PRODUCTS = NATIVE_PRODUCTS | frozenset(
    ("FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits")
)
ATTENTION = frozenset(("Attention", "GroupQueryAttention", "MultiHeadAttention", "SelfAttention"))
ROUNDING = frozenset(("Cast", "DequantizeLinear", "QuantizeLinear", "ReduceMax", "ReduceMin"))
NORMS = frozenset(("LayerNormalization", "SimplifiedLayerNormalization"))
_OUTER = frozenset(("If", "Loop", "Scan"))  # their time is that of the operations inside
_BYTES = {"float": 4, "int32": 4, "int64": 8, "uint8": 1, "int8": 1, "bool": 1, "float16": 2}
_SLOWEST = 12


@dataclass(slots=True)
class Spent:
    """What one kind of operation took in all runs.

    Attributes:
        seconds: time.
        flop: multiplications and additions, of products and attention.
        n_bytes: bytes of tensors read and written.
        count: operations.
    """

    seconds: float = 0.0
    flop: float = 0.0
    n_bytes: float = 0.0
    count: int = 0

    def add(self, other: Spent) -> None:
        """Add what another kind, or another operation, took."""
        self.seconds += other.seconds
        self.flop += other.flop
        self.n_bytes += other.n_bytes
        self.count += other.count


def kind_of(operation: str) -> str:
    """The kind of an ONNX operation: products, attention, rounding, norms, or passes."""
    for kind, names in (
        ("products", PRODUCTS),
        ("attention", ATTENTION),
        ("rounding", ROUNDING),
        ("norms", NORMS),
    ):
        if operation in names:
            return kind
    return "passes"


Shapes = list[tuple[str, list[int]]]


def _shapes(raw: Iterable[dict[str, list[int]]]) -> Shapes:
    return [(name, shape) for one in raw for name, shape in one.items()]


def _flop(operation: str, inputs: Shapes, outputs: Shapes) -> float:
    """Multiplications and additions of an operation, from the shapes that the profiler gives.

    Prepacked weights are no inputs there: rows and depth are those of the first input, columns
    those of the output.
    """
    if operation in NATIVE_PRODUCTS:
        rows, packed = np.prod(inputs[0][1][:-1]), np.prod(inputs[1][1])
        return 2.0 * float(rows) * float(packed)
    if operation == "SelfAttention":  # of texts of one length
        (n_tokens, joint), (n_texts,) = inputs[0][1], inputs[1][1]
        return 4.0 * n_tokens * n_tokens / n_texts * joint / 3
    if operation in PRODUCTS:
        return 2.0 * float(np.prod(inputs[0][1])) * outputs[0][1][-1]
    if operation in ATTENTION:
        n_texts, width, hidden = inputs[0][1]
        return 4.0 * n_texts * width * width * hidden
    return 0.0


def read_profile(path: Path) -> dict[str, Spent]:
    """What each operation took, by the operation's name, from a file of ORT's profiler."""
    found: dict[str, Spent] = defaultdict(Spent)
    for event in json.loads(path.read_text("utf-8")):
        facts = event.get("args", {})
        operation = facts.get("op_name")
        if event["cat"] != "Node" or not operation or operation in _OUTER:
            continue
        inputs = _shapes(facts.get("input_type_shape", ()))
        outputs = _shapes(facts.get("output_type_shape", ()))
        size = sum(_BYTES.get(name, 4) * float(np.prod(shape)) for name, shape in inputs + outputs)
        seconds = event["dur"] / 1e6
        found[operation].add(Spent(seconds, _flop(operation, inputs, outputs), size, 1))
    return found


def profile(
    artifact: Artifact, shape: tuple[int, int], runs: int, vocabulary: int
) -> tuple[dict[str, Spent], float]:
    """What each operation took in some runs, and the median seconds of a run without a profiler.

    Args:
        artifact: the model.
        shape: texts and tokens of each.
        runs: number of runs.
        vocabulary: token ids are below this number.
    """
    ids = np.random.default_rng(0).integers(0, vocabulary, shape)
    mask = np.ones(shape, np.int64)
    alone = shape[0] == 1

    def run(session: GraphSession) -> float:
        started = time.perf_counter()
        session.run(ids, mask, apply_mask=not alone)
        return time.perf_counter() - started

    native = artifact.record.native > 0
    plain = GraphSession(artifact.graph, session_options(1, native=native))
    run(plain)
    spent = [run(plain) for _ in range(runs)]
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1, native=native)
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/run"
        session = GraphSession(artifact.graph, options)
        for _ in range(runs):
            run(session)
        return read_profile(Path(session.end_profiling())), statistics.median(spent)


# --- ceilings


def _runner(
    node: onnx.NodeProto,
    inputs: dict[str, tuple[int, NDArray[Any]]],
    constants: dict[str, NDArray[Any]],
) -> Callable[[], object]:
    """A function that runs one node, whose output is `y`.

    Args:
        node: the node.
        inputs: ONNX type and value, by name; the first axis may have any size.
        constants: initializers, by name.
    """
    declared = [
        helper.make_tensor_value_info(name, kind, ["n", *value.shape[1:]])
        for name, (kind, value) in inputs.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "ceiling", declared, [output], tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session: Any = ort.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    feeds = {name: value for name, (_, value) in inputs.items()}
    return lambda: session.run(None, feeds)


def _best(run: Callable[[], object], seconds: float = 0.3) -> float:
    """Least seconds of a call; calls for about so many seconds."""
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def ceilings(rows: int, width: int) -> dict[str, float]:
    """Rates of single operations: GFLOP/s of products, GB/s of a pass over tensors.

    Args:
        rows: tokens of a run.
        width: of a token's vector; the product is `(rows, width) @ (width, 4 * width)`.
    """
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, width), dtype=np.float32)
    w = generator.standard_normal((width, 4 * width), dtype=np.float32)
    flop = 2.0 * rows * width * 4 * width
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    run = _runner(node, {"x": (TensorProto.FLOAT, x)}, {"w": w})
    found = {"fp32 products": flop / _best(run) / 1e9}
    node = helper.make_node(
        "MatMulIntegerToFloat", ["x", "w", "one", "scale", "zero"], ["y"], domain=CONTRIB
    )
    constants = {
        "w": generator.integers(-63, 64, w.shape, dtype=np.int8),
        "one": np.array(1, np.float32),
        "scale": generator.random(4 * width, dtype=np.float32),
        "zero": np.array(128, np.uint8),
    }
    rounded = generator.integers(0, 255, x.shape, dtype=np.uint8)
    run = _runner(node, {"x": (TensorProto.UINT8, rounded)}, constants)
    found["int8 products"] = flop / _best(run) / 1e9
    node = helper.make_node("Add", ["x", "z"], ["y"])
    run = _runner(node, dict.fromkeys(("x", "z"), (TensorProto.FLOAT, x)), {})
    found["passes"] = 3.0 * x.nbytes / _best(run) / 1e9
    if (bf16 := _bf16_seconds(x, w)) is not None:
        found["bf16 products"] = flop / bf16 / 1e9
    return found


def _bf16_seconds(x: NDArray[np.float32], w: NDArray[np.float32]) -> float | None:
    """Least seconds of the product in bf16; None without OpenVINO."""
    try:
        ov: Any = importlib.import_module("openvino")
        ops: Any = importlib.import_module("openvino.opset13")
    except ImportError:
        return None
    parameter = ops.parameter(list(x.shape), np.float32)
    model = ov.Model(
        [ops.matmul(parameter, ops.constant(w), transpose_a=False, transpose_b=False)], [parameter]
    )
    config = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    return _best(lambda: request.infer([x]))


# --- the table


def table(
    spent: dict[str, Spent], runs: int, run_s: float, tokens: int, tops: dict[str, float]
) -> str:
    """The profile as Markdown."""
    total = sum(one.seconds for one in spent.values())
    kinds: dict[str, Spent] = defaultdict(Spent)
    for operation, one in spent.items():
        kinds[kind_of(operation)].add(one)
    rates = (
        f"{name} {rate:,.0f} {'GB/s' if name == 'passes' else 'GFLOP/s'}"
        for name, rate in tops.items()
    )
    lines = [
        f"{tokens / run_s:,.0f} tok/s on one thread; a run takes {1000 * run_s:.1f} ms,",
        f"and its operations {1000 * total / runs:.1f} ms under the profiler",
        "",
        f"ceilings: {', '.join(rates)}",
        "",
        "| operation | share | ms a run | times a run | rate |",
        "|---|---|---|---|---|",
    ]
    rows = [(f"**{kind}**", one) for kind, one in kinds.items()]
    slowest = sorted(spent.items(), key=lambda item: -item[1].seconds)[:_SLOWEST]
    for group in (rows, slowest):
        for name, one in sorted(group, key=lambda item: -item[1].seconds):
            rate = one.flop / one.seconds / 1e9 if one.flop else one.n_bytes / one.seconds / 1e9
            unit = "GFLOP/s" if one.flop else "GB/s"
            lines.append(
                f"| {name} | {one.seconds / total:.1%} | {1000 * one.seconds / runs:.2f} "
                f"| {one.count / runs:.0f} | {rate:,.1f} {unit} |"
            )
    return "\n".join(lines)


def _shape(text: str) -> tuple[int, int]:
    texts, tokens = text.lower().split("x")
    return int(texts), int(tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile a model at some shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nomic-embed-text-v1.5")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--kernels", default="auto", choices=(*get_args(Kernels), "auto"))
    parser.add_argument("--shape", type=_shape, action="append", help="texts x tokens, as 4x128")
    parser.add_argument("--runs", type=int, default=10)
    given = parser.parse_args(arguments)
    settings = make_ready(
        load_settings(None, model=(given.model,), precision=given.precision, kernels=given.kernels)
    )
    catalog, store = open_catalog(settings), open_store(settings)
    manifest = catalog.manifest(settings.model[0])
    artifact = find_artifact(store, manifest, manifest.precision_for(settings.precision))
    width = manifest.output.dimensions.native
    n_ids = manifest.architecture.config.get("vocab_size", 1000)
    for shape in given.shape or [(4, 128)]:
        n_texts, n_tokens = shape
        spent, run_s = profile(artifact, shape, given.runs, min(1000, n_ids))
        tops = ceilings(n_texts * n_tokens, width)
        print(f"\n{artifact.record.fingerprint}, {n_texts} x {n_tokens}")
        print(table(spent, given.runs, run_s, n_texts * n_tokens, tops))


if __name__ == "__main__":
    main()
