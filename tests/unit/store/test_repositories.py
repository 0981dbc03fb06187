"""A repository that no model names: its commit is resolved once, every file is pinned, and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from matryo.build.provision import derive_model, ensure_model
from matryo.catalog.catalog import Catalog
from matryo.catalog.manifest import Manifest
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import SILENT
from matryo.store.derived import find_derived, models_folder
from matryo.store.layout import Store
from matryo.store.pull.repository import checkpoint_files
from matryo.store.references import parse_reference
from tests.folders import change_json, make_folder, write_json
from tests.standins import COMMIT, StandIn, serving

REPO = "acme/my-model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A hub, empty at first, and no token or cache on this machine."""
    with serving() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        yield state


def upload(hub: StandIn, folder: Path, revision: str = "", commit: str = COMMIT) -> None:
    """Put every file of a folder into the repository, and tell the commit of a revision."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    for name, path in names.items():
        hub.files[f"/{REPO}/resolve/{commit}/{name}"] = path.read_bytes()
    siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in names.items()]
    at = f"/api/models/{REPO}/revision/{revision}" if revision else f"/api/models/{REPO}"
    answer = {"id": REPO, "sha": commit, "siblings": siblings, "tags": [], "private": False}
    hub.files[at] = json.dumps(answer).encode()


def catalog(root: Path) -> Catalog:
    """The models of the store, and no shipped ones."""
    stored = models_folder(root / "home")
    return Catalog((stored,) if any(stored.glob("*/model.toml")) else (), home=root / "home")


def derived(root: Path, text: str = REPO) -> Manifest:
    """The manifest that a repository gives."""
    reference = parse_reference(text)
    assert reference
    folder = derive_model(Store(root / "home"), catalog(root), reference, SILENT)
    return catalog(root).manifest(folder.name)


def test_pinned_and_offline(tmp_path: Path, hub: StandIn) -> None:
    """The commit and every hash are pinned at the first pull; later starts ask no hub."""
    _, folder = make_folder(tmp_path, prompts={"query": "Q: "}, dense=[(32, 16, "Tanh")])
    upload(hub, folder)
    manifest = derived(tmp_path)
    assert manifest.hub
    assert (manifest.hub.repo, manifest.hub.revision) == (REPO, COMMIT)
    assert manifest.is_pinned
    assert manifest.aliases == (REPO,)
    assert manifest.prompts["query"] == "Q: "
    assert manifest.output.dimensions.native == 16
    assert set(manifest.files) == {
        *("model.safetensors", "tokenizer.json", "2_Dense/model.safetensors"),
    }
    hub.files.clear()
    hub.requests.clear()
    store = Store(tmp_path / "home")
    artifact = ensure_model(store, manifest, "fp32", SILENT)
    assert artifact.record.verified
    assert derived(tmp_path) == manifest
    assert hub.requests == []
    assert not list((tmp_path / "home/fetched").iterdir())


def test_revision(tmp_path: Path, hub: StandIn) -> None:
    """A branch or tag is resolved to the commit that it names at that time."""
    _, folder = make_folder(tmp_path)
    other = COMMIT[::-1]
    upload(hub, folder)
    one = derived(tmp_path)
    change_json(folder / "1_Pooling/config.json", pooling_mode="cls")
    upload(hub, folder, "v2", other)
    two = derived(tmp_path, f"{REPO}@v2")
    assert one.hub
    assert two.hub
    assert (one.hub.revision, two.hub.revision) == (COMMIT, other)
    assert (one.id, two.id) == ("my-model", "my-model-2")
    assert two.output.steps[0] == "cls_pool"
    # A later commit of the branch changes nothing until the model is removed.
    upload(hub, folder, "", other)
    assert derived(tmp_path) == one


def test_broken_off(tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that broke off goes on where it ended, and no half of a model is left."""
    _, folder = make_folder(tmp_path)
    upload(hub, folder)
    weights = hub.files.pop(f"/{REPO}/resolve/{COMMIT}/model.safetensors")
    with pytest.raises(PullFailed, match=r"does not give us model\.safetensors"):
        derived(tmp_path)
    assert find_derived(tmp_path / "home", REPO) is None
    hub.files[f"/{REPO}/resolve/{COMMIT}/model.safetensors"] = weights
    hub.requests.clear()
    derived(tmp_path)
    asked = [path for method, path, _ in hub.requests if method == "GET"]
    assert [path.rpartition("/")[2] for path in asked if "resolve" in path] == ["model.safetensors"]


@pytest.mark.parametrize("status", [401, 404, 500])
def test_refused(tmp_path: Path, hub: StandIn, status: int) -> None:
    """A hub that refuses is named, with what to do."""
    hub.status = status
    with pytest.raises(PullFailed, match=f"does not tell what {REPO} holds.*HF_TOKEN"):
        derived(tmp_path)


def test_no_weights(tmp_path: Path, hub: StandIn) -> None:
    """A repository of pickles alone is refused before anything is fetched."""
    _, folder = make_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    upload(hub, folder)
    with pytest.raises(PullFailed, match=r"has no model\.safetensors and no .*AutoModel"):
        derived(tmp_path)
    assert not [path for _, path, _ in hub.requests if "resolve" in path]


def test_changed_in_the_store(tmp_path: Path, hub: StandIn) -> None:
    """A file that changed in the store is fetched again, and must be what it was."""
    _, folder = make_folder(tmp_path)
    upload(hub, folder)
    manifest = derived(tmp_path)
    store = Store(tmp_path / "home")
    stored = store.checkpoint(manifest.id, manifest.checkpoint_key) / "model.safetensors"
    stored.write_bytes(stored.read_bytes()[:-8] + bytes(8))
    assert ensure_model(store, manifest, "fp32", SILENT).record.verified
    shutil.rmtree(store.home / "artifacts")
    stored.unlink()
    hub.files[f"/{REPO}/resolve/{COMMIT}/model.safetensors"] = b"x" * stored.parent.stat().st_size
    with pytest.raises(CheckpointMismatch):
        ensure_model(store, manifest, "fp32", SILENT)


def test_cache_of_the_hub(tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE the hub's cache on this machine gives commit and files."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, folder = make_folder(tmp_path)
    cache = tmp_path / "hf/models--acme--my-model"
    with pytest.raises(PullFailed, match="HF_HUB_OFFLINE is set"):
        derived(tmp_path)
    shutil.copytree(folder, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(COMMIT)
    manifest = derived(tmp_path)
    assert manifest.hub
    assert manifest.hub.revision == COMMIT
    assert hub.requests == []


CHOICES = {
    "whole": (
        ["model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "tf_model.h5"],
        ["model.safetensors"],
    ),
    "shards": (
        [
            *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            "model.safetensors.index.json",
        ],
        [
            *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            "model.safetensors.index.json",
        ],
    ),
    "onnx": (
        ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_quantized.onnx"],
        ["onnx/model.onnx", "onnx/model.onnx_data"],
    ),
    "inner": (
        ["0_Transformer/model.safetensors", "0_Transformer/pytorch_model.bin"],
        ["0_Transformer/model.safetensors"],
    ),
    "odd names": (["../model.safetensors", "/etc/passwd", ".git/config"], []),
}


@pytest.mark.parametrize("case", CHOICES)
def test_chosen_files(case: str) -> None:
    """Of a repository, the weights are taken in one format, and what describes them."""
    names, weights = CHOICES[case]
    beside = ["config.json", "modules.json", "1_Pooling/config.json", "README.md"]
    found = checkpoint_files([*names, *beside, "eval/results.csv", "train.py"])
    assert set(found) == {*weights, *beside}


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a repository and an id are told apart by their form and by what is there."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "acme/here/config.json", {})
    repository = parse_reference("acme/there@v1.0")
    assert repository
    assert (repository.repo, repository.revision) == ("acme/there", "v1.0")
    for text in ("acme/here", "./acme/here", str(tmp_path / "acme/here"), "acme/here/config.json"):
        found = parse_reference(text)
        assert found
        assert found.path
        assert found.path.is_relative_to(tmp_path)
    assert parse_reference("nomic-embed-text-v1.5") is None
    absent = parse_reference("weights.gguf")
    assert absent
    assert absent.path == tmp_path / "weights.gguf"
