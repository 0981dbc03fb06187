"""Weights in blocks: rounding, the promised accuracy, and the same vector in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import BuildFailed
from app.core.manifest import Precision
from app.graph.checkpoint import Weights
from app.graph.checkpoint.safetensors import SafetensorsCheckpoint
from app.graph.emit import GraphBuilder
from app.graph.precision import Products, quantize_blocks
from tests.checkpoints import EXPERTS, make_model, save_tensors
from tests.conftest import build_tiny, load_tiny

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "nomic-v1.5": ("nomic_bert", {}),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
}


@given(
    st.sampled_from([4, 8]),
    st.integers(1, 5),
    st.integers(1, 100),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]),
)
def test_rounding(bits: int, out: int, into: int, seed: int, size: float) -> None:
    """Each weight within half a step of its block, zeros exact, the largest kept."""
    weight = np.random.default_rng(seed).standard_normal((out, into)).astype(np.float32)
    weight *= np.float32(size)
    blocks = quantize_blocks(weight, bits)
    middle = 1 << (bits - 1)
    steps = np.repeat(blocks.scales, 32, axis=1)
    back = ((blocks.values.astype(np.int64) - middle) * steps)[:, :into]
    # The end of the range that has one value less may be a whole step away.
    assert (np.abs(back - weight) <= np.abs(steps[:, :into]) * 1.0001).all()
    assert np.isfinite(back).all()
    inside = np.abs(weight) < np.abs(steps[:, :into]) * (middle - 1)
    assert (np.abs(back - weight)[inside] <= 0.501 * np.abs(steps[:, :into])[inside]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["int8", "q8", "q4"])
def test_alone_as_in_any_batch(tmp_path: Path, kind: str, precision: Precision) -> None:
    """Bit-identical: activations are quantised row by row, by nothing but their own row."""
    model_type, changes = KINDS[kind]
    model = make_model(tmp_path, model_type, max_tokens=1200, **changes)
    engine = load_tiny(model, build_tiny(tmp_path, model, precision), threads=2)
    texts = [np.random.default_rng(n).integers(4, 60, n) for n in (*range(1, 24), 100, 512, 600)]
    alone = [engine.embed([text], [32]).embeddings[0] for text in texts]
    rng = np.random.default_rng(0)
    for _ in range(6):
        order = rng.permutation(len(texts))[: rng.integers(2, 17)]
        together = engine.embed([texts[i] for i in order], [32] * len(order)).embeddings
        for vector, i in zip(together, order, strict=True):
            assert np.array_equal(vector, alone[i]), len(texts[i])


def test_precisions_differ(tmp_path: Path) -> None:
    """8 bits are nearer to fp32 than 4, and none of them is fp32."""
    model = make_model(tmp_path, "bert")
    text = np.arange(4, 30)
    exact, int8, q8, q4 = (
        load_tiny(model, build_tiny(tmp_path, model, precision)).embed([text], [32]).embeddings[0]
        for precision in ("fp32", "int8", "q8", "q4")
    )
    for near in (int8, q8):
        assert q4 @ exact < near @ exact < 1 - 1e-7
        assert near @ exact > 0.99


@pytest.mark.parametrize("fine", [False, True])
def test_int8_products(tmp_path: Path, fine: bool) -> None:
    """Rows of all sizes, zeros among them, within the rounding of both sides; fine is finer."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 64)).astype(np.float32)
    save_tensors({"w": weight}, tmp_path / "w.safetensors")
    weights = Weights(SafetensorsCheckpoint(tmp_path / "w.safetensors"), [{"w": "w"}])
    with GraphBuilder(tmp_path / "m.onnx", tmp_path / "m.data") as graph:
        graph.input("x", onnx.TensorProto.FLOAT, ("N", 64))
        products = Products(graph, weights, "int8")
        graph.output("y", products.product(products.operand("x", fine=fine), "w", (24, 64)), (1,))
        graph.save("product")
    x = rng.standard_normal((9, 64)).astype(np.float32) * np.geomspace(1e-6, 1e6, 9)[:, None]
    x = x.astype(np.float32)
    x[4] = 0
    session = cast("Any", onnxruntime).InferenceSession(str(tmp_path / "m.onnx"))
    (y,) = session.run(None, {"x": x})
    steps = np.abs(weight).max(1) / 127
    rounded = np.rint(weight / steps[:, None]) * steps[:, None]
    # What rounding x can do at most: half a step for each entry, or a part of that.
    bound = np.abs(x).max(1, keepdims=True) / 127 / 2 * np.abs(rounded).sum(1)
    off = np.abs(y - x.astype(np.float64) @ rounded.T)
    assert (off <= bound * (0.02 if fine else 1.01) + 1e-30).all()
    assert np.isfinite(y).all()
    assert not y[4].any()


def test_promised_accuracy_is_kept(tmp_path: Path) -> None:
    """A build below the manifest's bound is refused with both numbers, and leaves nothing."""
    model = make_model(tmp_path, "bert")
    path = model.models / model.id / "model.toml"
    path.write_text(path.read_text().replace("q4]\nmin_cosine = 0.5", "q4]\nmin_cosine = 0.99999"))
    with pytest.raises(BuildFailed, match=r"has cosine 0\.\d+ to fp32.*promises 0\.99999"):
        build_tiny(tmp_path, model, "q4")
    assert not list((tmp_path / "home/artifacts").rglob("artifact.json"))
