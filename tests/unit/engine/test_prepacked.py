"""Prepacked weights give the same bits from one mapped copy, or are not used."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.catalog.reading import read_manifest
from matryo.core.errors import BuildFailed, StoreFull
from matryo.engine import CoreUse
from matryo.engine.onnx import OnnxEngine
from matryo.engine.onnx import engine as engine_module
from matryo.engine.onnx import prepacked as module
from matryo.engine.onnx.prepacked import PrepackedGraph, find_prepacked, is_settled, prepack
from matryo.engine.onnx.sessions import SessionPool
from matryo.engine.packing import pack_model
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


@pytest.mark.parametrize("n_lost", [1, 5000])
def test_short_files_are_not_mapped(
    built: Built, monkeypatch: pytest.MonkeyPatch, n_lost: int
) -> None:
    """A prepacked file that lacks bytes is never given to ONNX Runtime, which maps the file."""
    model, artifact = built
    prepack(artifact)
    prepacked = find_prepacked(artifact)
    assert prepacked
    weights = prepacked.folder / "model.onnx.data"
    os.truncate(weights, max(0, weights.stat().st_size - n_lost))
    loaded: list[Path] = []

    class Pool(SessionPool):
        def __init__(self, path: Path, *args: Any, **options: Any) -> None:
            loaded.append(path)
            super().__init__(path, *args, **options)

    monkeypatch.setattr(engine_module, "SessionPool", Pool)
    load_tiny(model, artifact)
    assert loaded == [artifact.graph]


def test_weights_are_hashed_while_they_load(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of prepacked weights does not hold up the sessions, and still refuses damage."""
    model, artifact = built
    prepack(artifact)
    loading, paths = threading.Event(), list[Path]()
    intact = PrepackedGraph.intact

    def hash_once_loading(self: PrepackedGraph) -> bool:
        return loading.wait(20) and intact(self)

    class Pool(SessionPool):
        def __init__(self, path: Path, *args: Any) -> None:
            paths.append(path)
            loading.set()
            super().__init__(path, *args)

    monkeypatch.setattr(PrepackedGraph, "intact", hash_once_loading)
    monkeypatch.setattr(engine_module, "SessionPool", Pool)
    load_tiny(model, artifact)
    assert [path.parent != artifact.folder for path in paths] == [True]


class TestSharedStore:
    """Machines of two kinds on one store: each keeps its weights, rubbish goes."""

    def prepack_elsewhere(
        self,
        artifact: Artifact,
        monkeypatch: pytest.MonkeyPatch,
        *,
        ort: str = module.ORT_VERSION,
        cpu: str | None = None,
    ) -> Path:
        """Prepack as another machine does; returns the folder."""
        before = set(artifact.folder.glob("packed-*"))
        with monkeypatch.context() as patch:
            if cpu:
                patch.setattr(module, "_cpu", lambda: cpu)
            patch.setattr(module, "ORT_VERSION", ort)
            for cached in (module.machine_key, module.cpu_key):
                cached.cache_clear()
            prepack(artifact)
        for cached in (module.machine_key, module.cpu_key):
            cached.cache_clear()
        (folder,) = set(artifact.folder.glob("packed-*")) - before
        return folder

    def test_two_machines(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whichever starts last, both keep their weights, and each uses its own."""
        model, artifact = built
        before = vectors(load_tiny(model, artifact))
        theirs = self.prepack_elsewhere(artifact, monkeypatch, cpu="another")
        assert find_prepacked(artifact) is None
        prepack(artifact)
        ours = find_prepacked(artifact)
        assert ours
        assert ours.intact()
        assert set(artifact.folder.glob("packed-*")) == {ours.folder, theirs}
        with monkeypatch.context() as patch:
            patch.setattr(module, "machine_key", lambda: theirs.name.removeprefix("packed-"))
            found = find_prepacked(artifact)
            assert found
            assert found.intact()
            assert vectors(load_tiny(model, artifact)) == before

    @pytest.mark.parametrize("how", ["no record", "cut off", "gone"])
    def test_broken(self, built: Built, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        """What cannot serve any machine is removed."""
        _, artifact = built
        theirs = self.prepack_elsewhere(artifact, monkeypatch, cpu="another")
        match how:
            case "no record":
                (theirs / "packed.json").unlink()
            case "cut off":
                (theirs / "model.onnx.data").write_bytes(b"")
            case _:
                (theirs / "model.onnx").unlink()
        prepack(artifact)
        assert not theirs.exists()

    def test_old_runtime(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights of this CPU for another ONNX Runtime go, unless a process has them open."""
        _, artifact = built
        old = self.prepack_elsewhere(artifact, monkeypatch, ort="0.1")
        facts = module._read_record(old)
        assert facts
        holder = Holder()
        module.PrepackedGraph(old, facts).hold(holder)
        prepack(artifact)
        assert old.exists()
        ours = find_prepacked(artifact)
        assert ours
        del holder
        shutil.rmtree(ours.folder)
        prepack(artifact)
        assert not old.exists()

    def test_long_unused(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights that no process has loaded for long go; a load makes them used."""
        model, artifact = built
        theirs = self.prepack_elsewhere(artifact, monkeypatch, cpu="another")
        long_ago = time.time() - (module.UNUSED_DAYS + 1) * 24 * 3600
        os.utime(theirs / "packed.json", (long_ago, long_ago))
        with monkeypatch.context() as patch:
            patch.setattr(module, "machine_key", lambda: theirs.name.removeprefix("packed-"))
            load_tiny(model, artifact)
        prepack(artifact)
        assert theirs.exists()
        os.utime(theirs / "packed.json", (long_ago, long_ago))
        ours = find_prepacked(artifact)
        assert ours
        shutil.rmtree(ours.folder)
        prepack(artifact)
        assert not theirs.exists()


class Holder:
    """Something that uses prepacked weights for as long as it lives."""


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
