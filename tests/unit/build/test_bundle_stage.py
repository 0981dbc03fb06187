"""A bundled artefact gives the artefact's own bits, with its weights inside the one file."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from matryo.build.bundle.stage import (
    Weights,
    file_records,
    find_weights,
    stage_artifact,
    stage_extras,
    stage_model,
)
from matryo.build.bundle.write import write_archive
from matryo.build.provision import build_model
from matryo.catalog.pins import pins_path
from matryo.catalog.reading import read_manifest
from matryo.core.choices import Precision
from matryo.core.errors import ArtifactDamaged
from matryo.core.progress import SILENT
from matryo.engine.onnx.prepacked import find_prepacked, prepack
from matryo.store import artifact as artifacts
from matryo.store.artifact import (
    DATA_FILE,
    GRAPH_FILE,
    Artifact,
    find_artifact,
    read_artifact,
    write_record,
)
from matryo.store.bundle import (
    CODE,
    WEIGHTS,
    Bundle,
    BundleWriter,
    Index,
    bundled_graph,
    read_bundle,
)
from matryo.store.derived import DERIVED_FILE
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from matryo.store.records import FileRecord
from tests.checkpoints import EXPERTS, TinyModel, make_model
from tests.conftest import build_tiny, load_tiny

TEXTS = [np.arange(4, 4 + n) for n in (3, 17, 40)]


def vectors(model: TinyModel, artifact: Artifact) -> list[bytes]:
    """The bytes of the vectors of the texts."""
    found = load_tiny(model, artifact).embed(TEXTS, [32] * 3).embeddings
    return [vector.tobytes() for vector in found]


def bundle_of(artifact: Artifact, folder: Path) -> tuple[Bundle, Store]:
    """A bundle of an artefact without a program or code, and the store that it would unpack."""
    folder.mkdir()
    (folder / "launcher").write_bytes(b"a program")
    writer = BundleWriter(folder / "bundle")
    writer.add("launcher", [folder / "launcher"])
    weights = find_weights(artifact)
    part = writer.add(WEIGHTS, weights.files)
    store = Store(folder / "unpacked" / "home")
    stage_artifact(artifact, weights, part.offset, store)
    writer.add(CODE, [folder / "launcher"])
    record = artifact.record
    index = Index("1", "linux", record.model_id, record.precision, record.key, {}, ())
    writer.finish(index)
    writer.close()
    return replace(read_bundle(folder / "bundle"), folder=folder / "unpacked"), store


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny v2-moe, whose graph has branches and weights of two types."""
    return make_model(tmp_path, "nomic_bert", **EXPERTS)


@pytest.mark.parametrize("precision", ["fp32", "int8", "q8", "q4"])
def test_same_bits(
    tmp_path: Path, model: TinyModel, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine on a bundle gives the artefact's own bits, under any name of the file."""
    artifact = build_tiny(tmp_path, model, precision)
    bundle, store = bundle_of(artifact, tmp_path / "b")
    expected = vectors(model, artifact)
    shutil.rmtree(artifact.folder)
    manifest = read_manifest(model.models / model.id)
    for name in ("bundle", "x", "a name of Zürich" + "x" * 230):
        renamed = bundle.file.rename(bundle.file.with_name(name))
        bundle = replace(bundle, file=renamed)
        monkeypatch.setattr(artifacts, "running", lambda found=bundle: found)
        found = find_artifact(store, manifest, precision)
        assert found.weights == renamed
        assert not (found.folder / DATA_FILE).exists()
        found.check_files()
        assert vectors(model, found) == expected


def test_prepacked_in_the_cache(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are laid out beside the unpacked graph, and give the same bits."""
    artifact = build_tiny(tmp_path, model)
    bundle, store = bundle_of(artifact, tmp_path / "b")
    monkeypatch.setattr(artifacts, "running", lambda: bundle)
    found = find_artifact(store, read_manifest(model.models / model.id), "fp32")
    assert found.n_bytes >= artifact.n_bytes - artifact.graph.stat().st_size
    before = vectors(model, found)
    prepack(found)
    assert find_prepacked(found)
    assert vectors(model, found) == before


def test_an_artefact_outside_has_its_own_weights(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that runs from a bundle finds weights of another store beside their graph."""
    artifact = build_tiny(tmp_path, model)
    bundle, _ = bundle_of(artifact, tmp_path / "b")
    monkeypatch.setattr(artifacts, "running", lambda: bundle)
    assert read_artifact(artifact.folder).weights is None


def test_a_damaged_graph_is_found(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a bundled artefact has the hash of the graph as it was bundled."""
    artifact = build_tiny(tmp_path, model)
    bundle, store = bundle_of(artifact, tmp_path / "b")
    monkeypatch.setattr(artifacts, "running", lambda: bundle)
    found = find_artifact(store, read_manifest(model.models / model.id), "fp32")
    content = bytearray(found.graph.read_bytes())
    content[-1] ^= 1
    found.graph.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match="has sha256"):
        load_tiny(model, found)


def test_branches_are_walked(tmp_path: Path, model: TinyModel) -> None:
    """No tensor of a bundled graph names a file of its own, in whatever branch the tensor is."""
    artifact = build_tiny(tmp_path, model)
    proto = onnx.load(artifact.graph, load_external_data=False)
    outer = next(tensor for tensor in proto.graph.initializer if tensor.external_data)
    inner = onnx.TensorProto()
    inner.CopyFrom(outer)
    branch = onnx.helper.make_graph([], "branch", [], [], [inner])
    constant = onnx.helper.make_node("Constant", [], ["c"], value=inner)
    choice = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    proto.graph.node.extend([choice, constant])
    artifact.graph.write_bytes(proto.SerializeToString())
    store = Store(tmp_path / "staged")
    stage_artifact(artifact, Weights((), {DATA_FILE: 0}), 65536, store)
    graph = next(store.home.rglob("model.onnx"))
    assert DATA_FILE.encode() in artifact.graph.read_bytes()
    assert DATA_FILE.encode() not in graph.read_bytes()


def test_extras(tmp_path: Path) -> None:
    """Pins of the model are copied; what the store lacks is left out."""
    source, target = Store(tmp_path / "a"), Store(tmp_path / "b")
    pins = pins_path(source.home, "tiny")
    pins.parent.mkdir(parents=True)
    pins.write_text("{}")
    stage_extras("tiny", source, target)
    stage_extras("other", source, target)
    copied = list(target.home.rglob("*.json"))
    assert copied == [pins_path(target.home, "tiny")]


def test_an_archive_keeps_links_and_modes(tmp_path: Path) -> None:
    """Links stay links, programs stay programs, and the same files give the same bytes."""
    folder = tmp_path / "code"
    (folder / "lib" / "empty").mkdir(parents=True)
    (folder / "lib" / "a.so").write_bytes(b"library" * 1000)
    (folder / "lib" / "b.so").symlink_to("a.so")
    (folder / "program").write_bytes(b"")
    (folder / "program").chmod(0o755)
    write_archive(folder, tmp_path / "one.zip")
    os.utime(folder / "program", (1, 1))
    write_archive(folder, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        modes = {entry.filename: oct(entry.external_attr >> 16) for entry in archive.infolist()}
        assert archive.read("lib/b.so") == b"a.so"
    assert modes["lib/b.so"].startswith("0o12")
    assert modes["program"] == "0o100755"
    assert modes["lib/empty/"].startswith("0o4")
    assert list(file_records(folder)) == ["lib/a.so", "program"]


def test_a_graph_without_data_files(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that holds every tensor itself is unpacked whole, and gives its own bits."""
    artifact = build_tiny(tmp_path, model)
    onnx.save(onnx.load(artifact.graph), artifact.graph)
    (artifact.folder / DATA_FILE).unlink()
    files = {GRAPH_FILE: FileRecord(artifact.graph.stat().st_size, sha256_file(artifact.graph))}
    kept = artifact.record.files.keys() - {GRAPH_FILE, DATA_FILE}
    files |= {name: artifact.record.files[name] for name in kept}
    write_record(artifact.folder, replace(artifact.record, files=files))
    artifact = read_artifact(artifact.folder)
    expected = vectors(model, artifact)
    assert not find_weights(artifact).files
    bundle, store = bundle_of(artifact, tmp_path / "b")
    bundle.check()
    monkeypatch.setattr(artifacts, "running", lambda: bundle)
    found = find_artifact(store, read_manifest(model.models / model.id), "fp32")
    assert bundled_graph(found.graph, bundle.file) is None
    assert vectors(model, found) == expected


def test_weights_of_the_operator(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle does not look at whatever lies at the path that its weights were built from."""
    weights = next(model.checkpoint.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    manifest = read_manifest(model.models / model.id)
    artifact = build_model(
        Store(tmp_path / "home"),
        manifest,
        "fp32",
        model.checkpoint,
        allow_unverified=True,
        reporter=SILENT,
    )
    bundle, store = bundle_of(artifact, tmp_path / "b")
    monkeypatch.setattr(artifacts, "running", lambda: bundle)
    weights.write_bytes(b"other weights")
    assert find_artifact(store, manifest, "fp32").record.key == artifact.record.key


def test_a_derived_model_is_bundled_as_a_model(tmp_path: Path) -> None:
    """The manifest and its golden values are copied, and nothing else that is in the folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("model.toml", "golden.json", DERIVED_FILE, "model.safetensors"):
        (folder / name).write_text(name)
    stage_model(folder, tmp_path / "models")
    copied = sorted(path.name for path in (tmp_path / "models" / "mine").iterdir())
    assert copied == ["golden.json", "model.toml"]
