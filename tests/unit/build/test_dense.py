"""Dense layers of a checkpoint: found, checked, pinned, copied into the artefact, and computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    CheckpointMismatch,
    ManifestInvalid,
)
from matryo.core.progress import SILENT
from matryo.store.artifact import Artifact, find_artifact
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from tests.checkpoints import HIDDEN, TinyModel, make_model, save_gguf, save_tensors
from tests.conftest import load_tiny
from tests.reference import hidden_states, pooled

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((48, 2 * HIDDEN), dtype=np.float32)
BIAS = RNG.standard_normal(48, dtype=np.float32)
LAST = RNG.standard_normal((HIDDEN, 48), dtype=np.float32)
STEPS = ["mean_pool", "max_pool", "dense", "l2_normalize", "dense", "truncate", "l2_normalize"]
FILES = ("2_Dense/model.safetensors", "3_Dense/model.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny `bert` with two pools and two dense layers, which `[files]` pins."""
    model = make_model(tmp_path, "bert")
    for name, tensors in zip(
        FILES,
        ({"linear.weight": WEIGHT, "linear.bias": BIAS}, {"linear.weight": LAST}),
        strict=True,
    ):
        (model.checkpoint / name).parent.mkdir()
        save_tensors(tensors, model.checkpoint / name)
    edit(
        model,
        '["mean_pool", "truncate", "l2_normalize"]',
        json.dumps(STEPS)
        + table(FILES[0], 2 * HIDDEN, 48, activation="gelu", bias=True)
        + table(FILES[1], 48, HIDDEN, activation="identity", bias=False),
    )
    pins = [f'"{name}" = {{ sha256 = "{sha256_file(model.checkpoint / name)}" }}' for name in FILES]
    edit(model, "[files]\n", "[files]\n" + "\n".join(pins) + "\n")
    return model


def table(file: str, into: int, out: int, *, activation: str, bias: bool) -> str:
    """An `[[output.dense]]` table."""
    values = {
        "file": file,
        "in_features": into,
        "out_features": out,
        "bias": bias,
        "activation": activation,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n[[output.dense]]\n" + "\n".join(lines)


def edit(model: TinyModel, old: str, new: str) -> None:
    """Replace a piece of the manifest."""
    path = model.models / model.id / "model.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def build(
    root: Path, model: TinyModel, checkpoint: Path | None = None, *, unverified: bool = False
) -> Artifact:
    """Build the model in fp32."""
    return build_model(
        Store(root / "home"),
        read_manifest(model.models / model.id),
        "fp32",
        checkpoint or model.checkpoint,
        allow_unverified=unverified,
        reporter=SILENT,
    )


def expected(model: TinyModel, ids: list[int], size: int) -> Any:
    """The vector of the float64 forward and the float64 steps."""
    return pooled(
        hidden_states(model.config, model.tensors, ids),
        layer_norm_eps=None,
        dimensions=size,
        pools=STEPS[:2],
        between=STEPS[2:5],
        layers=[(WEIGHT, BIAS, "gelu"), (LAST, None, "identity")],
    )


def test_vectors(tmp_path: Path, model: TinyModel) -> None:
    """Vectors are those of the float64 loops, bit for bit the same alone and in a batch."""
    artifact = build(tmp_path, model)
    assert artifact.record.verified
    engine = load_tiny(model, artifact)
    texts = [np.arange(4, 4 + n) for n in (1, 7, 30)]
    vectors = engine.embed(texts, [HIDDEN, 16, 5]).embeddings
    for text, vector in zip(texts, vectors, strict=True):
        assert np.abs(vector - expected(model, text.tolist(), len(vector))).max() < 1e-5
        (alone,) = engine.embed([text], [len(vector)]).embeddings
        assert alone.tobytes() == vector.tobytes()


def test_a_gguf_with_dense_layers_beside_it(tmp_path: Path, model: TinyModel) -> None:
    """The layers of a file of weights are in the folders beside that file."""
    path = save_gguf(model, model.checkpoint / "tiny.gguf", metadata={"pooling_type": 0})
    engine = load_tiny(model, build(tmp_path, model, path, unverified=True))
    text = np.arange(4, 20)
    (vector,) = engine.embed([text], [HIDDEN]).embeddings
    assert np.abs(vector - expected(model, text.tolist(), HIDDEN)).max() < 1e-5


@pytest.mark.parametrize("name", FILES)
def test_a_missing_layer(tmp_path: Path, model: TinyModel, name: str) -> None:
    """A file that is missing is named, and so is what the folder holds in its place."""
    path = model.checkpoint / name
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointMismatch) as caught:
        build(tmp_path, model)
    assert f"{path}: no such file, but model.toml names it in output.dense" in caught.value.message
    assert "pytorch_model.bin is weights as PyTorch pickles them" in caught.value.message


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"linear.weight": WEIGHT}, "linear.weight (48, 64), but"),
        ({"linear.weight": WEIGHT.T.copy(), "linear.bias": BIAS}, "linear.weight (64, 48), but"),
        ({"linear.weight": WEIGHT, "linear.bias": BIAS[:-1]}, "linear.bias (47,)"),
        (
            {"linear.weight": WEIGHT, "linear.bias": BIAS, "residual.weight": WEIGHT},
            "residual.weight",
        ),
        ({}, "the tensors none"),
        ({"linear.weight": WEIGHT * np.inf, "linear.bias": BIAS}, "NaN or infinity"),
    ],
)
def test_a_layer_of_another_shape(
    tmp_path: Path, model: TinyModel, tensors: dict[str, Any], found: str
) -> None:
    """A file that holds another layer than the manifest describes is refused with its tensors."""
    save_tensors(tensors, model.checkpoint / FILES[0])
    with pytest.raises(CheckpointMismatch) as caught:
        build(tmp_path, model, unverified=True)
    assert str(model.checkpoint / FILES[0]) in caught.value.message
    assert found in caught.value.message


def test_a_layer_that_is_no_safetensors(tmp_path: Path, model: TinyModel) -> None:
    """A damaged file is refused and named."""
    (model.checkpoint / FILES[1]).write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointMismatch, match=r"3_Dense/model\.safetensors is not a whole"):
        build(tmp_path, model, unverified=True)


def test_pins(tmp_path: Path, model: TinyModel) -> None:
    """The hash of a layer is checked like that of the weights, and is part of the key."""
    first = build(tmp_path, model)
    save_tensors({"linear.weight": LAST * 2}, model.checkpoint / FILES[1])
    with pytest.raises(CheckpointMismatch, match=r"3_Dense.* which tiny does not pin"):
        build(tmp_path, model)
    second = build(tmp_path, model, unverified=True)
    assert not second.record.verified
    assert second.record.key != first.record.key
    assert second.record.checkpoint_sha256 == first.record.checkpoint_sha256
    paths = [source.path for source in second.record.sources]
    assert paths[:3] == [str(model.checkpoint / name) for name in ("model.safetensors", *FILES)]


def test_a_layer_that_is_not_listed(tmp_path: Path, model: TinyModel) -> None:
    """A layer that `[files]` does not list needs --unverified."""
    edit(model, f'"{FILES[1]}" = ', '"other.txt" = ')
    with pytest.raises(CheckpointMismatch, match="does not pin"):
        build(tmp_path, model)
    assert not build(tmp_path, model, unverified=True).record.verified


def test_an_artefact_follows_pins_and_files(tmp_path: Path, model: TinyModel) -> None:
    """An artefact is served while its layers are those that are pinned, or are unchanged."""
    store = Store(tmp_path / "home")
    build(tmp_path, model)
    find_artifact(store, read_manifest(model.models / model.id), "fp32")
    edit(model, sha256_file(model.checkpoint / FILES[0]), "0" * 64)
    manifest = read_manifest(model.models / model.id)
    with pytest.raises(ArtifactMissing, match=r"now pins 2_Dense/model\.safetensors to 0000"):
        find_artifact(store, manifest, "fp32")
    build(tmp_path, model, unverified=True)
    find_artifact(store, manifest, "fp32")
    save_tensors({"linear.weight": LAST * 2}, model.checkpoint / FILES[1])
    with pytest.raises(ArtifactMissing, match=r"3_Dense/model\.safetensors now has sha256"):
        find_artifact(store, manifest, "fp32")


def test_a_damaged_artefact(tmp_path: Path, model: TinyModel) -> None:
    """A damaged or missing `dense.npy` is found when the model is loaded."""
    artifact = build(tmp_path, model)
    content = bytearray(artifact.dense.read_bytes())
    content[-1] ^= 1
    artifact.dense.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"dense\.npy has sha256"):
        load_tiny(model, artifact)
    artifact.dense.unlink()
    with pytest.raises(ArtifactDamaged, match=r"dense\.npy is missing"):
        load_tiny(model, artifact)


def test_models_without_layers_have_no_file(tmp_path: Path) -> None:
    """The artefact of a model without dense steps has the files and the record that it had."""
    artifact = build(tmp_path, make_model(tmp_path, "bert"))
    assert not artifact.dense.exists()
    assert set(artifact.record.files) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    assert artifact.record.dense_sha256 == ()


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("in_features = 64", "in_features = 66", ManifestInvalid, "of 33 components, but archi"),
        (
            "steps =",
            'graph_output = "x"\nsteps =',
            CheckpointMismatch,
            r"x in output\.graph_output, which is for a ready ONNX graph",
        ),
        (
            '"mean_pool", "max_pool"',
            '"given"',
            CheckpointMismatch,
            r"given in output\.steps, which is for a ready ONNX graph",
        ),
    ],
)
def test_steps_of_another_model(
    tmp_path: Path, model: TinyModel, old: str, new: str, error: type[Exception], message: str
) -> None:
    """Steps that the weights cannot feed are refused before anything is built."""
    edit(model, old, new)
    with pytest.raises(error, match=message):
        build(tmp_path, model)
