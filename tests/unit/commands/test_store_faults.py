"""A store that cannot be one, and a precision that a model lacks: one sentence in every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matryo import Embedder
from matryo.core.errors import SettingsInvalid
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
    """`Embedder` refuses the folder as well, before anything is loaded."""
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    embedder = Embedder("tiny", home=bad_home(tmp_path, "file"))
    with pytest.raises(SettingsInvalid, match="which is no folder"):
        embedder.embed(["a"])
