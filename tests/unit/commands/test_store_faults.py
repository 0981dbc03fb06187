"""A store that cannot be one, and a precision that a model lacks: one sentence in every command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from matryo import Embedder
from matryo.assembly import make_ready
from matryo.build.provision import build_model, ensure_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import SettingsInvalid, StoreUnwritable
from matryo.core.progress import SILENT
from matryo.core.settings import load_settings
from matryo.store import encodings
from matryo.store.encodings import find_table
from matryo.store.files import naming_the_store, temporary_directory
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model

COMMANDS: dict[str, tuple[str, ...]] = {
    "pull": ("pull", "tiny", "--from", "CHECKPOINT"),
    "build": ("build", "tiny", "--checkpoint", "CHECKPOINT"),
    "serve": ("serve", "--model", "tiny", "--port", "0"),
    "embed": ("embed", "tiny"),
    "verify": ("verify", "tiny"),
    "models": ("models",),
}


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that is not built, and that offers no q4."""
    model = make_model(tmp_path, "bert")
    folder = model.models / model.id
    (folder / "golden.json").write_text('{"checks": []}')
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace("[precisions.q4]\nmin_cosine = 0.5", ""))
    return model


def run(model: TinyModel, home: Path, command: str, *flags: str) -> list[str]:
    """Run a command that fails; returns the lines of its standard error."""
    arguments = [str(model.checkpoint) if a == "CHECKPOINT" else a for a in COMMANDS[command]]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MATRYO_")} | {
        "MATRYO_HOME": str(home),
        "MATRYO_LOG_FORMAT": "text",
        "MATRYO_MODELS": str(model.models),
    }
    done = subprocess.run(
        [sys.executable, "-m", "matryo", *arguments, *flags],
        env=env,
        input="a text\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()


def bad_home(root: Path, kind: str) -> Path:
    """A path that cannot be a store."""
    path = root / "bad"
    match kind:
        case "file":
            path.write_text("in the way")
        case "link to nothing":
            path.symlink_to(root / "gone")
        case "below a file":
            path.write_text("in the way")
            return path / "home"
        case _:
            return Path("/proc/matryo")  # nobody may make a folder there, not even root
    return path


CASES = [
    (command, kind)
    for command in COMMANDS
    for kind in ("file", "link to nothing", "below a file", "unwritable")
    if (command, kind) != ("models", "unwritable")  # a list of models writes nothing
]


@pytest.mark.parametrize(("command", "kind"), CASES)
def test_home(tmp_path: Path, model: TinyModel, command: str, kind: str) -> None:
    """MATRYO_HOME and what stands there are named in one sentence, without a traceback."""
    home = bad_home(tmp_path, kind)
    notes = ("has no artefact", "standard input is read as")
    lines = [line for line in run(model, home, command) if not any(note in line for note in notes)]
    assert len(lines) == 1, lines
    assert "MATRYO_HOME" in lines[0]
    assert str(home) in lines[0]


def test_home_of_the_library(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Embedder` raises the same error."""
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    embedder = Embedder("tiny", home=bad_home(tmp_path, "file"))
    with pytest.raises(StoreUnwritable, match=r"MATRYO_HOME is .*not a folder"):
        embedder.embed(["a"])


@pytest.mark.parametrize("command", ["build", "serve", "embed", "verify"])
def test_precision(tmp_path: Path, model: TinyModel, command: str) -> None:
    """A precision that the model.toml lacks is refused before anything is built."""
    lines = run(model, tmp_path / "home", command, "--precision", "q4")
    assert "is not offered in precision q4, but in fp32, int8, q8" in lines[-1]
    assert not (tmp_path / "home").exists()


def test_precision_of_the_library(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Embedder`, and the functions below the commands, refuse it as well."""
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    embedder = Embedder("tiny", precision="q4", home=tmp_path / "home")
    with pytest.raises(SettingsInvalid, match="not offered in precision q4"):
        embedder.embed(["a"])
    manifest, store = read_manifest(model.models / model.id), Store(tmp_path / "home")
    with pytest.raises(SettingsInvalid, match="not offered"):
        ensure_model(store, manifest, "q4", SILENT)
    with pytest.raises(SettingsInvalid, match="not offered"):
        build_model(store, manifest, "q4", model.checkpoint, allow_unverified=True, reporter=SILENT)
    assert not (tmp_path / "home").exists()


def test_precision_of_the_second_model(tmp_path: Path, model: TinyModel) -> None:
    """The first of two models is not built if the second lacks the precision."""
    make_model(tmp_path / "other", "bert", model_id="whole")
    folders = f"{model.models},{tmp_path / 'other/models'}"
    settings = load_settings(
        None, model="whole,tiny", precision="q4", home=tmp_path / "home", models=folders
    )
    with pytest.raises(SettingsInvalid, match="tiny is not offered"):
        make_ready(settings)
    assert not (tmp_path / "home").exists()


def test_errors_of_other_paths_are_not_the_stores(tmp_path: Path) -> None:
    """A refusal of a file outside of the store is not blamed on MATRYO_HOME."""
    home = tmp_path / "home"
    with pytest.raises(PermissionError), naming_the_store(home):
        raise PermissionError(13, "Permission denied", str(tmp_path / "elsewhere"))
    with pytest.raises(StoreUnwritable, match="MATRYO_HOME"), naming_the_store(home):
        raise PermissionError(13, "Permission denied", str(home / "locks/x.lock"))


def test_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the remedy; reading a vocabulary needs no such folder."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(encodings, "_IN_PACKAGES", ())
    with pytest.raises(SettingsInvalid, match="Set TMPDIR"):
        temporary_directory()
    assert find_table(Store(tmp_path)) is None
