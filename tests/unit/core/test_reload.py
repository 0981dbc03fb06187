"""Files that are read again when they change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from matryo.core.errors import SettingsInvalid
from matryo.core.reload import Outcome, Reloads


class Watched:
    """A watched file of words; `bad` is refused."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.used: list[str] = []
        self.counted: list[tuple[str, Outcome]] = []
        self.on_load: Callable[[], object] = lambda: None
        self.reloads = Reloads(lambda what, outcome: self.counted.append((what, outcome)))

    def watch(self) -> Watched:
        """Begin to watch."""
        self.reloads.watch("keys", [self.file], self.load, self.used.append)
        return self

    def load(self) -> str:
        """The text of the file."""
        text = self.file.read_text()
        self.on_load()
        if text == "bad":
            raise SettingsInvalid("the file says bad")
        return text

    def replace(self, text: str) -> None:
        """Rename another file over the file, as editors and configuration tools do."""
        other = self.file.with_name("other")
        other.write_text(text)
        other.replace(self.file)

    def sweep(self, n: int = 2, *, at_once: bool = False) -> None:
        """Look at the file some times, and use what was read."""
        for _ in range(n):
            for use in self.reloads.read(at_once=at_once):
                use()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """A file with the word `one`, watched."""
    file = tmp_path / "file"
    file.write_text("one")
    return Watched(file).watch()


def test_first_load(watched: Watched, tmp_path: Path) -> None:
    """The value is used from the start, and nothing is read again while nothing changes."""
    watched.sweep(5)
    assert watched.used == ["one"]
    assert not watched.counted
    with pytest.raises(FileNotFoundError):
        Watched(tmp_path / "none").watch()


@pytest.mark.parametrize("how", ["in place", "rename"])
def test_change(watched: Watched, how: str) -> None:
    """A changed file is read in the second look that finds the same change: it may be half there."""
    if how == "rename":
        watched.replace("two")
    else:
        watched.file.write_text("three")
    watched.sweep(1)
    assert watched.used == ["one"]
    watched.sweep(3)
    assert watched.used == ["one", "two" if how == "rename" else "three"]
    assert watched.counted == [("keys", "ok")]


def test_swapped_symlink(tmp_path: Path) -> None:
    """Kubernetes swaps a link in the way to the file; both files may have the same size and time."""
    for name in ("first", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        os.utime(tmp_path / name / "file", (1000, 1000))
    data = tmp_path / "..data"
    data.symlink_to("first")
    (tmp_path / "file").symlink_to("..data/file")
    watched = Watched(tmp_path / "file").watch()
    swap = tmp_path / "..swap"
    swap.symlink_to("later")
    swap.replace(data)
    watched.sweep()
    assert watched.used == ["first", "later"]


def test_bad_file(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """A bad file is refused once, in one line, and the value of before stays; then it is mended."""
    watched.replace("bad")
    watched.sweep(5)
    assert watched.used == ["one"]
    assert watched.counted == [("keys", "refused")]
    (record,) = caplog.records
    assert "the file says bad" in record.getMessage()
    assert record.exc_info is None
    watched.replace("two")
    watched.sweep()
    assert watched.used == ["one", "two"]


def test_missing_file(watched: Watched) -> None:
    """A file that goes is refused, and used again once it is back."""
    watched.file.unlink()
    watched.sweep()
    assert watched.counted == [("keys", "refused")]
    watched.file.write_text("two")
    watched.sweep()
    assert watched.used == ["one", "two"]


def test_half_read(watched: Watched) -> None:
    """A file that changes while it is read is not used, and is read again when it is still."""
    later = ["three", "two"]

    def change() -> None:
        if later:
            watched.replace(later.pop())

    watched.replace("half")
    watched.on_load = change
    watched.sweep(10)
    assert watched.used == ["one", "three"]
    assert watched.counted == [("keys", "ok")]


def test_at_once(watched: Watched) -> None:
    """An operator's signal has the file read at once, changed or not."""
    watched.sweep(1, at_once=True)
    assert watched.used == ["one", "one"]
    watched.replace("two")
    watched.sweep(1, at_once=True)
    assert watched.used == ["one", "one", "two"]
    watched.sweep(3)
    assert len(watched.used) == 3
    watched.replace("bad")
    watched.sweep(1, at_once=True)
    assert watched.counted[-1] == ("keys", "refused")
