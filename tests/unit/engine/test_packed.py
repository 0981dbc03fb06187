"""Packed weights: the same bits from one mapped copy, or none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matryo.build.provision import pack_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import BuildFailed, StoreFull
from matryo.engine.onnx import OnnxEngine, SessionConfig
from matryo.engine.onnx import packed as packing
from matryo.engine.onnx.packed import find_packed, is_settled, pack
from matryo.store.artifact import Artifact
from matryo.store.layout import Store
from tests.checkpoints import EXPERTS, TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.recorder import Recorder

TEXTS = [np.arange(4, 4 + n) for n in (3, 17, 40)]
Built = tuple[TinyModel, Artifact]


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """A tiny v2-moe, not packed."""
    model = make_model(tmp_path, "nomic_bert", **EXPERTS)
    return model, build_tiny(tmp_path, model)


def vectors(engine: OnnxEngine) -> list[bytes]:
    """What the engine makes of the texts, bit by bit."""
    return [vector.tobytes() for vector in engine.embed(TEXTS, [32] * 3).embeddings]


def test_same_vectors(built: Built) -> None:
    """Packed or not, with one thread or with two: the same bits."""
    model, artifact = built
    assert find_packed(artifact) is None
    before = vectors(load_tiny(model, artifact))
    pack(artifact)
    assert find_packed(artifact)
    manifest = read_manifest(model.models / model.id)
    assert vectors(OnnxEngine(manifest, artifact, SessionConfig(1, 2))) == before


def test_one_copy_in_memory(built: Built) -> None:
    """Packed weights are shared by two sessions; without them there is one session."""
    model, artifact = built
    manifest = read_manifest(model.models / model.id)
    pool = OnnxEngine(manifest, artifact, SessionConfig(1, 2))._session
    assert pool._session is pool._lone
    pack(artifact)
    pool = OnnxEngine(manifest, artifact, SessionConfig(1, 2))._session
    assert pool._session is not pool._lone


def test_packed_is_what_loads(built: Built) -> None:
    """With packed weights the graph beside them is not even looked at."""
    model, artifact = built
    pack(artifact)
    artifact.graph.unlink()
    load_tiny(model, artifact)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "packed.json"])
def test_damage_is_found(built: Built, name: str) -> None:
    """A packed file that changed is never used; the artefact itself serves."""
    model, artifact = built
    before = vectors(load_tiny(model, artifact))
    pack(artifact)
    packed = find_packed(artifact)
    assert packed
    content = bytearray((packed.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (packed.folder / name).write_bytes(content)
    assert vectors(load_tiny(model, artifact)) == before
    assert is_settled(artifact) == (name != "packed.json")


def test_another_machine(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights packed for another CPU are not used, and make room for ours."""
    _, artifact = built
    monkeypatch.setattr(packing, "machine_key", lambda: "00000000")
    pack(artifact)
    monkeypatch.undo()
    assert find_packed(artifact) is None
    pack(artifact)
    assert find_packed(artifact)
    assert len(list(artifact.folder.glob("packed-*"))) == 1


def test_other_values_are_not_kept(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should ORT compute anything else with packed weights, they go, and are not tried again."""
    model, artifact = built
    before = vectors(load_tiny(model, artifact))
    run = packing.GraphSession.run

    def off(session: packing.GraphSession, *args: object, **kwargs: object) -> object:
        hidden = run(session, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        return hidden + np.random.default_rng().random(hidden.shape, np.float32)

    monkeypatch.setattr(packing.GraphSession, "run", off)
    with pytest.raises(BuildFailed, match="other values with packed weights"):
        pack(artifact)
    monkeypatch.undo()
    pack(artifact)
    assert is_settled(artifact)
    assert find_packed(artifact) is None
    assert [path.name for path in artifact.folder.glob("packed-*/*")] == ["packed.json"]
    assert vectors(load_tiny(model, artifact)) == before


def test_no_room(tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs memory, not the service."""
    model, artifact = built

    def full(*_: object) -> None:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(packing, "_save", full)
    recorder = Recorder()
    manifest = read_manifest(model.models / model.id)
    pack_model(Store(tmp_path / "home"), manifest, "fp32", recorder)
    assert recorder.said == ["weights stay in this process's own memory: the disk is full"]
    load_tiny(model, artifact)
    assert not list(artifact.folder.glob("packed-*"))
