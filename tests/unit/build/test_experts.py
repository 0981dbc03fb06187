"""Mixtures of experts compute v2-moe's formula sparsely, whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from matryo.engine.onnx import OnnxEngine
from tests import reference
from tests.checkpoints import EXPERTS, INNER, TinyModel, make_model, save_tensors
from tests.conftest import build_tiny, load_tiny
from tests.reference import Array, hidden_states

Built = tuple[TinyModel, OnnxEngine]
TOLERANCE = 1e-4  # of hidden states, whose entries are of the order of 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A tiny v2-moe: eight experts, two for each token."""
    root = tmp_path_factory.mktemp("experts")
    model = make_model(root, "nomic_bert", max_tokens=1200, **EXPERTS)
    return model, load_tiny(model, build_tiny(root, model))


def texts_of(*lengths: int) -> list[Any]:
    """Random texts."""
    return [np.random.default_rng(n).integers(4, 60, n) for n in lengths]


def furthest(built: Built, lengths: tuple[int, ...] = (1, 5, 40)) -> float:
    """The largest difference of a hidden state from the float64 forward."""
    model, engine = built
    return max(
        float(
            np.abs(
                engine.hidden_states(ids) - hidden_states(model.config, model.tensors, ids.tolist())
            ).max()
        )
        for ids in texts_of(*lengths)
    )


@pytest.mark.parametrize("n_tokens", [1, 2, 40, 512, 600])
def test_matches_the_reference(built: Built, n_tokens: int) -> None:
    """The graph agrees with float64 for few tokens and for many."""
    assert furthest(built, (n_tokens,)) < TOLERANCE


def renormalised(config: Any, w: Any, at: str, x: Array) -> Array:
    """The mistake: shares of the chosen experts scaled to add up to 1, as in Mixtral."""
    logits = w[at + "mlp.router.layer.weight"] @ x
    share = np.exp(logits - logits.max())
    share /= share.sum()
    kept = np.sort(share)[-config["moe_top_k"] :].sum()
    bias = w[at + "mlp.experts.bias"]
    return (EXPERTS_OF(config, w, at, x) - bias) / kept + bias


def bias_per_expert(config: Any, w: Any, at: str, x: Array) -> Array:
    """The mistake: the bias added once for each chosen expert."""
    extra = (config["moe_top_k"] - 1) * w[at + "mlp.experts.bias"]
    return EXPERTS_OF(config, w, at, x) + extra


def transposed(config: Any, w: Any, at: str, x: Array) -> Array:
    """The mistake: the second matrix read as `(H, I)`, not `(I, H)`."""
    name = at + "mlp.experts.mlp.w2"
    stack = w[name].reshape(config["num_experts"], -1, INNER)
    turned = stack.swapaxes(1, 2).reshape(w[name].shape)
    return EXPERTS_OF(config, dict(w) | {name: turned}, at, x)


def tanh_gelu(x: Array) -> Array:
    """The mistake: GELU's approximation by tanh."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


EXPERTS_OF: Callable[..., Array] = reference._experts


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        ("_experts", renormalised),
        ("_experts", bias_per_expert),
        ("_experts", transposed),
        ("gelu", tanh_gelu),
    ],
)
def test_each_known_mistake_would_be_seen(
    built: Built, monkeypatch: pytest.MonkeyPatch, name: str, flaw: Callable[..., Array]
) -> None:
    """A forward with a known mistake differs from the graph by more than the tolerance."""
    monkeypatch.setattr(reference, name, flaw)
    assert furthest(built) > 3 * TOLERANCE


def test_experts_without_tokens(tmp_path: Path) -> None:
    """The graph is right if all tokens choose the same two experts of eight."""
    model = make_model(tmp_path, "nomic_bert", max_tokens=1200, **EXPERTS)
    model.tensors["encoder.layers.1.mlp.router.layer.weight"][:] = 0  # ties go to the first
    path = model.checkpoint / "model.safetensors"
    manifest = model.models / model.id / "model.toml"
    from matryo.store.files import sha256_file

    before = sha256_file(path)
    save_tensors(model.tensors, path)
    manifest.write_text(manifest.read_text().replace(before, sha256_file(path)))
    engine = load_tiny(model, build_tiny(tmp_path, model))
    assert furthest((model, engine), (1, 3, 512)) < TOLERANCE


def test_only_chosen_experts_compute(built: Built, tmp_path: Path) -> None:
    """The experts' products compute 2 rows for each token, not 8."""
    model, _ = built
    path = build_tiny(tmp_path, model).graph
    proto = onnx.load(path)
    products = [n for n in proto.graph.node if "expert" in " ".join(n.input) and n.name]
    ups = [n.input[0] for n in products if n.op_type == "MatMul" and ".up." in n.input[1]]
    assert len(ups) == 8
    for name in ups:
        info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        proto.graph.output.append(info)
    onnx.save(proto, tmp_path / "watched.onnx")
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()  # pyright: ignore[reportUnknownVariableType]
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(str(tmp_path / "watched.onnx"), options)
    ids = texts_of(37)[0][None]
    rows = session.run(ups, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert sum(len(row) for row in rows) == 37 * 2


def test_company_changes_nothing(built: Built) -> None:
    """Vectors have the same bits alone, padded and in shuffled batches."""
    _, engine = built
    texts = texts_of(*range(1, 40), 64, 129, 300, 512, 513)
    alone = [engine.embed([text], [32]).embeddings[0] for text in texts]
    rng = np.random.default_rng(0)
    for _ in range(8):
        order = rng.permutation(len(texts))[:16]
        together = engine.embed([texts[i] for i in order], [32] * 16).embeddings
        for vector, i in zip(together, order, strict=True):
            assert np.array_equal(vector, alone[i]), len(texts[i])
