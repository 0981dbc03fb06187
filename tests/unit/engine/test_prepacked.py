"""Prepacked weights give the same bits from one mapped copy, or are not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matryo.build.provision import pack_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import BuildFailed, StoreFull
from matryo.engine import CoreUse
from matryo.engine.onnx import OnnxEngine
from matryo.engine.onnx import prepacked as module
from matryo.engine.onnx.prepacked import find_prepacked, is_settled, prepack
from matryo.store.artifact import Artifact
from matryo.store.layout import Store
from tests.checkpoints import EXPERTS, TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.recorder import Recorder

TWO_THREADS = CoreUse(workers=1, threads=1, lone_threads=2)
TEXTS = [np.arange(4, 4 + n) for n in (3, 17, 40)]
Built = tuple[TinyModel, Artifact]


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """A tiny v2-moe, not prepacked."""
    model = make_model(tmp_path, "nomic_bert", **EXPERTS)
    return model, build_tiny(tmp_path, model)


def vectors(engine: OnnxEngine) -> list[bytes]:
    """The bytes of the vectors of the texts."""
    return [vector.tobytes() for vector in engine.embed(TEXTS, [32] * 3).embeddings]


def test_same_vectors(built: Built) -> None:
    """Vectors have the same bits with and without prepacked weights, with one thread and two."""
    model, artifact = built
    assert find_prepacked(artifact) is None
    before = vectors(load_tiny(model, artifact))
    prepack(artifact)
    assert find_prepacked(artifact)
    manifest = read_manifest(model.models / model.id)
    assert vectors(OnnxEngine(manifest, artifact, TWO_THREADS)) == before


def test_one_copy_in_memory(built: Built) -> None:
    """Prepacked weights are shared by two sessions; without them there is one session."""
    model, artifact = built
    manifest = read_manifest(model.models / model.id)
    pool = OnnxEngine(manifest, artifact, TWO_THREADS)._session
    assert pool._session is pool._lone
    prepack(artifact)
    pool = OnnxEngine(manifest, artifact, TWO_THREADS)._session
    assert pool._session is not pool._lone


def test_the_prepacked_graph_loads(built: Built) -> None:
    """With prepacked weights, the artefact's own graph is never read."""
    model, artifact = built
    prepack(artifact)
    artifact.graph.unlink()
    load_tiny(model, artifact)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "packed.json"])
def test_damage_is_found(built: Built, name: str) -> None:
    """If a prepacked file changed, the engine loads the artefact's own graph."""
    model, artifact = built
    before = vectors(load_tiny(model, artifact))
    prepack(artifact)
    prepacked = find_prepacked(artifact)
    assert prepacked
    content = bytearray((prepacked.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (prepacked.folder / name).write_bytes(content)
    assert vectors(load_tiny(model, artifact)) == before
    assert is_settled(artifact) == (name != "packed.json")


def test_another_machine(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights prepacked for another CPU are not used, and are deleted."""
    _, artifact = built
    monkeypatch.setattr(module, "machine_key", lambda: "00000000")
    prepack(artifact)
    monkeypatch.undo()
    assert find_prepacked(artifact) is None
    prepack(artifact)
    assert find_prepacked(artifact)
    assert len(list(artifact.folder.glob("packed-*"))) == 1


def test_other_values_are_not_kept(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepacked weights that compute other values are deleted and not made again."""
    model, artifact = built
    before = vectors(load_tiny(model, artifact))
    run = module.GraphSession.run

    def off(session: module.GraphSession, *args: object, **kwargs: object) -> object:
        hidden = run(session, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        return hidden + np.random.default_rng().random(hidden.shape, np.float32)

    monkeypatch.setattr(module.GraphSession, "run", off)
    with pytest.raises(BuildFailed, match="other values from prepacked weights"):
        prepack(artifact)
    monkeypatch.undo()
    prepack(artifact)
    assert is_settled(artifact)
    assert find_prepacked(artifact) is None
    assert [path.name for path in artifact.folder.glob("packed-*/*")] == ["packed.json"]
    assert vectors(load_tiny(model, artifact)) == before


def test_no_room(tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk has no room for prepacked weights, the service runs with more memory."""
    model, artifact = built

    def full(*_: object) -> None:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(module, "_save", full)
    recorder = Recorder()
    manifest = read_manifest(model.models / model.id)
    pack_model(Store(tmp_path / "home"), manifest, "fp32", recorder)
    assert recorder.said == ["weights stay in this process's own memory: the disk is full"]
    load_tiny(model, artifact)
    assert not list(artifact.folder.glob("packed-*"))
