"""A model whose hashes nobody has published: the first pull pins it, and nothing changes after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from matryo.build.provision import ensure_model
from matryo.catalog.catalog import Catalog
from matryo.catalog.manifest import Manifest
from matryo.catalog.pins import pins_path
from matryo.core.errors import CheckpointMismatch, ManifestInvalid
from matryo.core.progress import SILENT
from matryo.store.artifact import Artifact
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from matryo.store.pull.checkpoint import pull
from tests.checkpoints import TinyModel, make_model
from tests.recorder import Recorder
from tests.standins import COMMIT, StandIn, hub_files, serving

REPO = "acme/tiny"
NAMES = ("model.safetensors", "tokenizer.json")
OTHER_COMMIT = COMMIT[::-1]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A hub, empty at first, and no token or cache on this machine."""
    with serving() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        yield state


@pytest.fixture
def model(tmp_path: Path, hub: StandIn) -> TinyModel:
    """A tiny model that pins the tokenizer, and leaves the weights to the first pull."""
    source = f'[[sources]]\nkind = "hub"\nrepo = "{REPO}"\nrevision = "{COMMIT}"'
    model = make_model(tmp_path, "bert", sources=source)
    hash_of_weights = sha256_file(model.checkpoint / NAMES[0])
    edit(model, f'"{NAMES[0]}" = {{ sha256 = "{hash_of_weights}" }}', f'"{NAMES[0]}" = {{}}')
    hub.files = hub_files(REPO, model.checkpoint, NAMES)
    return model


def edit(model: TinyModel, old: str, new: str) -> None:
    """Replace a text in the model's `model.toml`."""
    path = model.models / model.id / "model.toml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def manifest_of(tmp_path: Path, model: TinyModel) -> Manifest:
    """The model as a command finds it."""
    return Catalog([model.models], home=tmp_path / "home").manifest(model.id)


def pull_now(tmp_path: Path, model: TinyModel) -> Path:
    """Pull the model."""
    return pull(Store(tmp_path / "home"), manifest_of(tmp_path, model), None, SILENT)


def start(tmp_path: Path, model: TinyModel) -> Artifact:
    """What a server does before it serves."""
    return ensure_model(Store(tmp_path / "home"), manifest_of(tmp_path, model), "fp32", SILENT)


def test_the_first_pull_pins(tmp_path: Path, model: TinyModel) -> None:
    """The pull says and keeps the hash of the file that had none, and the model is pinned."""
    assert not manifest_of(tmp_path, model).is_pinned
    recorder = Recorder()
    folder = pull(Store(tmp_path / "home"), manifest_of(tmp_path, model), None, recorder)
    sha256 = sha256_file(model.checkpoint / NAMES[0])
    assert f"tiny: pinned {NAMES[0]} to sha256 {sha256}" in recorder.said

    found = json.loads(pins_path(tmp_path / "home", model.id).read_text("utf-8"))
    n_bytes = (model.checkpoint / NAMES[0]).stat().st_size
    files = {NAMES[0]: {"sha256": sha256, "bytes": n_bytes}}
    assert found == {"revision": COMMIT, "files": files}
    manifest = manifest_of(tmp_path, model)
    assert manifest.is_pinned
    assert Store(tmp_path / "home").checkpoint(model.id, manifest.checkpoint_key) == folder
    assert not list(folder.parent.glob("*.part"))


def test_the_second_start_asks_nobody(tmp_path: Path, hub: StandIn, model: TinyModel) -> None:
    """The first start fetches and builds; the next finds the artefact, without the hub."""
    first = start(tmp_path, model)
    assert first.record.verified
    assert hub.requests
    hub.requests.clear()
    hub.files.clear()
    assert start(tmp_path, model).folder == first.folder
    assert hub.requests == []


def test_a_changed_file_is_refused(tmp_path: Path, hub: StandIn, model: TinyModel) -> None:
    """Another file at the same revision is not the one that was pinned."""
    folder = pull_now(tmp_path, model)
    (folder / NAMES[0]).unlink()
    path = f"/{REPO}/resolve/{COMMIT}/{NAMES[0]}"
    right = hub.files[path]
    hub.files[path] = right[:-1] + b"!"
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors came with sha256"):
        pull_now(tmp_path, model)
    hub.files[path] = right
    assert (pull_now(tmp_path, model) / NAMES[0]).read_bytes() == right


def test_a_pinned_file_is_held_at_the_first_pull(
    tmp_path: Path, hub: StandIn, model: TinyModel
) -> None:
    """A file that model.toml pins is compared from the first pull on, and nothing is written."""
    path = f"/{REPO}/resolve/{COMMIT}/{NAMES[1]}"
    hub.files[path] += b" "
    with pytest.raises(CheckpointMismatch, match=r"tokenizer\.json came with sha256"):
        pull_now(tmp_path, model)
    assert not pins_path(tmp_path / "home", model.id).exists()


def test_another_revision_has_pins_of_its_own(
    tmp_path: Path, hub: StandIn, model: TinyModel
) -> None:
    """Pins of one revision say nothing of another, whose first pull writes them anew."""
    before = pull_now(tmp_path, model)
    edit(model, COMMIT, OTHER_COMMIT)
    assert not manifest_of(tmp_path, model).is_pinned
    weights = model.checkpoint / NAMES[0]
    weights.write_bytes(weights.read_bytes() + b"\0")
    hub.files = {
        path.replace(COMMIT, OTHER_COMMIT): content
        for path, content in hub_files(REPO, model.checkpoint, NAMES).items()
    }
    after = pull_now(tmp_path, model)
    assert after != before
    assert (after / NAMES[0]).read_bytes() == weights.read_bytes()
    assert manifest_of(tmp_path, model).files[NAMES[0]].sha256 == sha256_file(weights)


@pytest.mark.parametrize(
    "content", ["", "{", '{"revision": "main", "files": {}}', '{"files": {}}', "[" * 100_000]
)
def test_damaged_pins(tmp_path: Path, model: TinyModel, content: str) -> None:
    """A file of pins that cannot be read is named, with the remedy, which works."""
    pull_now(tmp_path, model)
    path = pins_path(tmp_path / "home", model.id)
    path.write_text(content)
    with pytest.raises(ManifestInvalid, match=r"tiny\.json cannot be read") as caught:
        manifest_of(tmp_path, model)
    assert "Remove the file" in caught.value.message
    path.unlink()
    pull_now(tmp_path, model)
    assert manifest_of(tmp_path, model).is_pinned
