"""A `modernbert` or `new` is read under any of the names that its files have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from matryo.build import arch
from matryo.catalog.reading import read_manifest
from matryo.core.errors import CheckpointMismatch, UnsupportedArchitecture
from matryo.store.files import sha256_file
from tests.checkpoints import Tensors, TinyModel, make_model, save_tensors
from tests.conftest import build_tiny, load_tiny


def _vector(root: Path, model: TinyModel) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The vector of a text, of a model that is built from its checkpoint."""
    engine = load_tiny(model, build_tiny(root, model))
    return engine.embed([np.arange(4, 24)], [32]).embeddings[0]


def _rewrite(model: TinyModel, tensors: Tensors) -> None:
    """Replace the tensors of a model's checkpoint, and the hash in the manifest."""
    path = model.checkpoint / "model.safetensors"
    before = sha256_file(path)
    save_tensors(tensors, path)
    manifest = model.models / model.id / "model.toml"
    manifest.write_text(manifest.read_text().replace(before, sha256_file(path)))


def _split(tensors: Tensors, joint: str, parts: tuple[str, ...]) -> Tensors:
    """The tensors with each module `joint` as equal parts of other names."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        if joint not in name:
            made[name] = tensor
            continue
        for part, piece in zip(parts, np.split(tensor, len(parts)), strict=True):
            made[name.replace(joint, part)] = piece
    return made


def _renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """The tensors with pieces of their names replaced."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for old, other in names.items():
            new = new.replace(old, other)
        made[new] = tensor
    return made


def _separate(tensors: Tensors) -> Tensors:
    """Names of Alibaba's code without `pack_qkv`."""
    names = tuple(f"attention.{letter}_proj" for letter in "qkv")
    return _split(tensors, "attention.qkv_proj", names)


def _transformers(tensors: Tensors) -> Tensors:
    """Names of transformers' `GteModel`."""
    tensors = _split(_separate(tensors), "up_gate_proj", ("up_proj", "gate_proj"))
    names = {"encoder.layer": "layers", "attention.": "self_attn."}
    names |= {"attn_ln": "post_attention_layernorm", "mlp_ln": "post_mlp_layernorm"}
    return _renamed(tensors, names)


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _with_a_head(tensors: Tensors) -> Tensors:
    """Names of Alibaba's code in a model with a head."""
    return _prefixed("new.", tensors) | {"classifier.bias": np.ones(1, np.float32)}


def _transformers_with_a_head(tensors: Tensors) -> Tensors:
    """Names of transformers in a model with a head."""
    return _prefixed("gte.", _transformers(tensors))


NEW: dict[str, Callable[[Tensors], Tensors]] = {
    "separate": _separate,
    "transformers": _transformers,
    "with-a-head": _with_a_head,
    "transformers-with-a-head": _transformers_with_a_head,
}


@pytest.mark.parametrize("change", NEW.values(), ids=NEW)
def test_new(tmp_path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Every family of names gives the vectors of the hub's names."""
    model = make_model(tmp_path, "new")
    expected = _vector(tmp_path, model)
    _rewrite(model, change(model.tensors))
    assert np.array_equal(_vector(tmp_path, model), expected)


def test_modernbert_with_a_head(tmp_path: Path) -> None:
    """A model whose names begin with `model.` beside a head's gives the same vectors."""
    model = make_model(tmp_path, "modernbert")
    expected = _vector(tmp_path, model)
    heads = ("head.", "decoder.")
    _rewrite(
        model,
        {n if n.startswith(heads) else f"model.{n}": t for n, t in model.tensors.items()},
    )
    assert np.array_equal(_vector(tmp_path, model), expected)


def test_unknown_biases(tmp_path: Path) -> None:
    """A bias of a norm that the config does not have is refused."""
    model = make_model(tmp_path, "modernbert")
    bias = {"final_norm.bias": np.ones(32, np.float32)}
    _rewrite(model, model.tensors | bias)
    with pytest.raises(CheckpointMismatch, match=r"final_norm\.bias.*no place"):
        build_tiny(tmp_path, model)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("modernbert", {"layer_types": ["other"] * 4}, "architecture.layer_types.0"),
        ("modernbert", {"hidden_activation": "relu"}, "architecture.hidden_activation"),
        ("modernbert", {"local_attention": 1}, "architecture.local_attention"),
        ("new", {"rope_scaling_factor": 0.5}, "architecture.rope_scaling_factor"),
        ("new", {"num_attention_heads": 32}, "must be an even multiple"),
    ],
)
def test_refused_configs(
    tmp_path: Path, model_type: str, changes: dict[str, object], message: str
) -> None:
    """A config that no graph computes is refused with the key."""
    model = make_model(tmp_path, model_type)
    path = model.models / model.id / "model.toml"
    ((key, value),) = changes.items()
    kept = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} =")]
    kept.insert(kept.index("[architecture]") + 1, f"{key} = {json.dumps(value)}")
    path.write_text("\n".join(kept))
    with pytest.raises(UnsupportedArchitecture) as caught:
        arch.load(read_manifest(path.parent))
    assert message in caught.value.message
