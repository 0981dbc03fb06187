"""`matryo pull cl100k_base`: the table that is known by its hash, or nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from matryo.cli import main
from matryo.store.encodings import TABLE_FILE, find_table
from matryo.store.layout import Store

FOLDER = "llama_index/core/_static/tiktoken_cache"


def table() -> Path:
    """The copy that packages of the tests bring."""
    found = find_table(Store(Path("none")))
    assert found
    return found


def wheel(path: Path, content: bytes) -> Path:
    """A wheel with the table where llama-index-core has it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{FOLDER}/{TABLE_FILE}", content)
        archive.writestr("other.py", "raise SystemExit")
    return path


def pull(home: Path, *flags: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["pull", "cl100k_base", *flags], env={"MATRYO_HOME": str(home)})


@pytest.mark.parametrize("kind", ["folder", "wheel"])
def test_pull_from_a_path(tmp_path: Path, kind: str) -> None:
    """From a folder or a wheel into the store; nothing else is left, twice is once."""
    origin = table().parent
    if kind == "wheel":
        origin = wheel(tmp_path / "x.whl", table().read_bytes())
    for _ in range(2):
        assert "complete and verified" in pull(tmp_path / "home", "--from", str(origin)).stderr
    encodings = Store(tmp_path / "home").encodings
    assert [path.name for path in encodings.iterdir()] == [TABLE_FILE]
    assert find_table(Store(tmp_path / "home")) == encodings / TABLE_FILE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SGVsbG8= 0\n", "has 11 bytes, but the pinned file has 1,681,126"),
        (bytes(1_681_126), "it is known by 223921b7"),
    ],
)
def test_another_content_is_not_kept(tmp_path: Path, content: bytes, message: str) -> None:
    """A table of another size or hash is refused, and nothing is kept."""
    origin = wheel(tmp_path / "x.whl", content)
    done = pull(tmp_path / "home", "--from", str(origin))
    assert done.exit_code == 1
    assert message in done.stderr
    assert list(Store(tmp_path / "home").encodings.iterdir()) == []


def test_faults(tmp_path: Path) -> None:
    """A folder without it, a path that is none."""
    (tmp_path / "empty").mkdir()
    for origin in ("empty", "none", "none.whl"):
        done = pull(tmp_path / "home", "--from", str(tmp_path / origin))
        assert done.exit_code == 1
        assert str(tmp_path / origin) in done.stderr
