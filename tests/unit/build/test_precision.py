"""Rounded weights keep the promised accuracy, and a text has the same vector in any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.build.checkpoint import Weights
from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint
from matryo.build.emit import GraphBuilder
from matryo.build.precision import Products, quantize_blocks, quantize_rows
from matryo.core.choices import Precision
from matryo.core.errors import BuildFailed
from tests import arch as tiny
from tests.checkpoints import EXPERTS, make_model, save_tensors
from tests.conftest import build_tiny, load_tiny

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "nomic-v1.5": ("nomic_bert", {}),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
} | tiny.variants()


@given(
    st.sampled_from([4, 8]),
    st.integers(1, 5),
    st.integers(1, 100),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]),
)
def test_rounding(bits: int, out: int, into: int, seed: int, size: float) -> None:
    """A weight is off by at most half its block's scale; zeros and the largest entry are exact."""
    weight = np.random.default_rng(seed).standard_normal((out, into)).astype(np.float32)
    weight *= np.float32(size)
    blocks = quantize_blocks(weight, bits)
    middle = 1 << (bits - 1)
    steps = np.repeat(blocks.scales, 32, axis=1)
    back = ((blocks.values.astype(np.int64) - middle) * steps)[:, :into]
    # At the end of the range with one value less, the error may be a whole scale.
    assert (np.abs(back - weight) <= np.abs(steps[:, :into]) * 1.0001).all()
    assert np.isfinite(back).all()
    inside = np.abs(weight) < np.abs(steps[:, :into]) * (middle - 1)
    assert (np.abs(back - weight)[inside] <= 0.501 * np.abs(steps[:, :into])[inside]).all()


@given(
    st.integers(1, 5),
    st.integers(1, 65),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]),
    st.sampled_from([0.1, 1.0, 4.0]),
)
def test_rounding_of_rows(out: int, into: int, seed: int, size: float, tail: float) -> None:
    """A weight is off by at most half its row's scale, and a pair adds up to at most 128."""
    normal = np.random.default_rng(seed).standard_normal((out, into))
    weight = (np.sign(normal) * np.abs(normal) ** tail * size).astype(np.float32)
    levels, scales = quantize_rows(weight)
    assert (np.abs(levels * scales[:, None] - weight) <= 0.501 * scales[:, None]).all()
    assert (scales <= np.maximum(2 * np.abs(weight).max(1), 1e-20) / 127 * 1.001).all()
    pairs = np.pad(levels.astype(int), ((0, 0), (0, into % 2))).reshape(out, -1, 2)
    assert np.maximum(pairs, 0).sum(2).max() <= 128
    assert np.minimum(pairs, 0).sum(2).min() >= -128


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["int8", "q8", "q4"])
def test_alone_as_in_any_batch(tmp_path: Path, kind: str, precision: Precision) -> None:
    """Vectors have the same bits in any batch: a row is rounded by its own values only."""
    model_type, changes = KINDS[kind]
    model = make_model(tmp_path, model_type, max_tokens=1200, **changes)
    engine = load_tiny(model, build_tiny(tmp_path, model, precision), threads=2)
    lengths = (*range(1, 24), 100, 129, 512, 600)
    texts = [np.random.default_rng(n).integers(4, 60, n) for n in lengths]
    alone = [engine.embed([text], [32]).embeddings[0] for text in texts]
    rng = np.random.default_rng(0)
    for _ in range(6):
        order = rng.permutation(len(texts))[: rng.integers(2, 17)]
        together = engine.embed([texts[i] for i in order], [32] * len(order)).embeddings
        for vector, i in zip(together, order, strict=True):
            assert np.array_equal(vector, alone[i]), len(texts[i])


def test_precisions_differ(tmp_path: Path) -> None:
    """8 bits are nearer to fp32 than 4 bits, and neither gives the bits of fp32."""
    model = make_model(tmp_path, "bert")
    text = np.arange(4, 30)
    exact, int8, q8, q4 = (
        load_tiny(model, build_tiny(tmp_path, model, precision)).embed([text], [32]).embeddings[0]
        for precision in ("fp32", "int8", "q8", "q4")
    )
    for near in (int8, q8):
        assert q4 @ exact < near @ exact < 1 - 1e-7
        assert near @ exact > 0.99


def _run(
    folder: Path,
    tensors: dict[str, np.ndarray[Any, Any]],
    write: Callable[[GraphBuilder, Products], str],
    x: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """The output of a graph of int8 products for the input `x`."""
    save_tensors(tensors, folder / "w.safetensors")
    names = {name: name for name in tensors}
    weights = Weights(SafetensorsCheckpoint(folder / "w.safetensors"), [names])
    with GraphBuilder(folder / "m.onnx", folder / "m.data") as graph:
        kind = {"f": onnx.TensorProto.FLOAT, "i": onnx.TensorProto.INT64}[x.dtype.kind]
        graph.input("x", kind, ("N", *x.shape[1:]))
        graph.output("y", write(graph, Products(graph, weights, "int8")), ("N", 1))
        graph.save("product")
    session = cast("Any", onnxruntime).InferenceSession(str(folder / "m.onnx"))
    return session.run(None, {"x": x})[0]


def _rows(n: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of many magnitudes, and a row of zeros."""
    x = np.random.default_rng(1).standard_normal((n, size)) * np.geomspace(1e-6, 1e6, n)[:, None]
    x[n // 2] = 0
    return x.astype(np.float32)


def _rounded(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A weight `(out, in)`, rounded to int8 and back."""
    levels, scales = quantize_rows(weight)
    return levels * scales[:, None]


@pytest.mark.parametrize("kind", ["plain", "fine", "one-sided"])
def test_int8_products(tmp_path: Path, kind: str) -> None:
    """A product is off by rounding alone; fine and one-sided operands are rounded more finely."""
    weight = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    x, step = _rows(9, 64), 127.0
    if kind == "one-sided":
        x, step = np.maximum(x, -0.05 * x.max(1, keepdims=True)), 223.0

    def write(_graph: GraphBuilder, products: Products) -> str:
        operand = products.operand("x", one_sided=kind == "one-sided")
        return products.product(operand, "w", (24, 64), fine=kind == "fine")

    y = _run(tmp_path, {"w": weight}, write, x)
    # The largest error by rounding x: half a scale for each entry, or less.
    bound = np.abs(x).max(1, keepdims=True) / step / 2 * np.abs(_rounded(weight)).sum(1)
    off = np.abs(y - x.astype(np.float64) @ _rounded(weight).T)
    assert (off <= bound * (0.02 if kind == "fine" else 1.01) + 1e-30).all()
    assert np.isfinite(y).all()
    assert not y[4].any()


def test_one_sided_keeps_what_is_negative(tmp_path: Path) -> None:
    """A negative row of a one-sided operand is rounded coarsely, not clipped."""
    weight = np.eye(64, dtype=np.float32)
    x = -np.abs(_rows(9, 64))

    def write(_graph: GraphBuilder, products: Products) -> str:
        return products.product(products.operand("x", one_sided=True), "w", (64, 64))

    y = _run(tmp_path, {"w": weight}, write, x)
    assert (np.abs(y - x) <= np.abs(x).max(1, keepdims=True) / 32 / 2 * 1.01).all()


def test_steps_may_come_later(tmp_path: Path) -> None:
    """Scales that the next product applies give the same result, except for rounding."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("a", "b")}

    def written(*, later: bool) -> Callable[[GraphBuilder, Products], str]:
        def write(_graph: GraphBuilder, products: Products) -> str:
            first = products.operand("x")
            y = products.product(first, "a", (64, 64), apply_scales=not later)
            second = products.operand(y, pending_scales=first.scales if later else "")
            return products.product(second, "b", (64, 64))

        return write

    x = _rows(9, 64)
    now, later = (_run(tmp_path, tensors, written(later=later), x) for later in (False, True))
    assert np.allclose(now, later, rtol=1e-5, atol=np.abs(now).max(1, keepdims=True) * 1e-2)
    largest = np.abs(now).max(1)
    assert largest[-1] > 1e8 * largest[0] > 0


def test_channels_of_a_norm_are_evened_out(tmp_path: Path) -> None:
    """If a norm makes some channels wide, smoothing keeps more digits of the narrow ones."""
    rng = np.random.default_rng(0)
    widths = np.geomspace(0.01, 10, 64).astype(np.float32)
    tensors = {
        "w": (rng.standard_normal((24, 64)) / widths).astype(np.float32),
        "n.weight": widths,
        "n.bias": np.zeros(64, np.float32),
    }
    x = rng.standard_normal((50, 64)).astype(np.float32) * widths

    def written(norm: str) -> Callable[[GraphBuilder, Products], str]:
        def write(_graph: GraphBuilder, products: Products) -> str:
            return products.product(products.operand("x", norm=norm), "w", (24, 64))

        return write

    exact = x @ tensors["w"].T
    plain, even = (
        float(np.abs(_run(tmp_path, tensors, written(norm), x) - exact).mean())
        for norm in ("", "n")
    )
    assert even < plain / 4
    assert even < 0.02 * np.abs(exact).mean()


@pytest.mark.parametrize("n_rows", [1, 9, 200])
def test_bytes_are_added_exactly(tmp_path: Path, n_rows: int) -> None:
    """The largest products do not overflow 16 bits on the CPU that runs the test.

    The two weights of a pair add up to 127. A pair's weights and its neighbours' may add up to more.
    """
    rng = np.random.default_rng(0)
    share = rng.integers(0, 128, (24, 32))
    share[:4] = [[127], [0], [64], [63]]
    pairs = np.stack([share, 127 - share], axis=-1)
    weight = np.where(rng.random((24, 32, 1)) < 0.7, pairs, -pairs).reshape(24, 64)
    weight[:4] = np.abs(weight[:4])
    x = np.where(rng.random((n_rows, 64)) < 0.7, 127, -128).astype(np.float32)
    x[0] = 127
    x[:, 0] = 127  # a step of 1
    assert np.array_equal(quantize_rows(weight.astype(np.float32))[0], weight)

    def write(graph: GraphBuilder, products: Products) -> str:
        operand = products.operand("x")
        one = products.product(operand, "w", (24, 64))
        two = products.product(operand, "w", (24, 64), fine=True)
        return graph.op("Concat", one, two, axis=1)

    tensors = {"w": weight.astype(np.float32)}
    y = _run(tmp_path, tensors, write, x)
    assert np.array_equal(y, np.tile(x @ weight.T, 2).astype(np.float32))


def test_words_in_blocks(tmp_path: Path) -> None:
    """A word embedding is off by at most half its block's scale, and needs fewer bytes."""
    table = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    ids = np.array([3, 99, 0, 3])

    def write(_graph: GraphBuilder, products: Products) -> str:
        return products.words(table.shape, iter((table[:70], table[70:])), "x")

    found = _run(tmp_path, {"w": table}, write, ids)
    steps = np.abs(table[ids].reshape(4, -1, 32)).max(-1).repeat(32, axis=-1) / 128
    # At the end of the range with one value less, the error may be a whole scale.
    assert (np.abs(found - table[ids]) <= steps * 1.001).all()
    assert np.array_equal(found[0], found[3])
    assert (tmp_path / "m.data").stat().st_size < table.nbytes / 2  # most of it is alignment


def test_promised_accuracy_is_kept(tmp_path: Path) -> None:
    """A build less accurate than the manifest's bound is refused, and leaves no artefact."""
    model = make_model(tmp_path, "bert")
    path = model.models / model.id / "model.toml"
    path.write_text(path.read_text().replace("q4]\nmin_cosine = 0.5", "q4]\nmin_cosine = 0.99999"))
    with pytest.raises(BuildFailed, match=r"has cosine 0\.\d+ to fp32.*promises 0\.99999"):
        build_tiny(tmp_path, model, "q4")
    assert not list((tmp_path / "home/artifacts").rglob("artifact.json"))
