"""What is drawn at the foot of a terminal: lines that fit, figures that are right."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any, cast

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Task

from matryo.core.drawing import _fit, _Line
from matryo.core.progress import Reporter, Together
from matryo.core.terminal import can_draw, duration
from tests.recorder import Counter

FIGURES = [(0, " 45 %"), (2, "41.2/90.9 MB"), (4, "12.3 MB/s"), (1, "4 s left")]


class Stream(io.StringIO):
    """A terminal, or none."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self._is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "term", "draws"),
    [
        (True, "xterm", True),
        (True, None, True),
        (True, "dumb", False),
        (True, "DUMB", False),
        (True, "unknown", False),
        (False, "xterm", False),
    ],
)
def test_can_draw(
    monkeypatch: pytest.MonkeyPatch, term: str | None, *, is_terminal: bool, draws: bool
) -> None:
    """A pipe shows no bars, nor does a terminal that cannot move its cursor."""
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # other programs' ways to ask for colours
        monkeypatch.setenv(name, "1")
    assert can_draw(Stream(is_terminal=is_terminal)) is draws


def test_a_closed_stream() -> None:
    """A stream that the shell closed is no terminal."""
    closed = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "matryo", "models"]
    done = subprocess.run(closed, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "label", ["fetching model.safetensors", "重み 重み 重み 重み 重み", "x", ""]
)
def test_every_width(label: str) -> None:
    """A line never exceeds the terminal, and what is left out are the figures of least use."""
    ranks = {text: rank for rank, text in FIGURES}
    figures, n_bar = list[str](), 0
    for width in range(1, 121):
        found, figures, n_bar = _fit(label, FIGURES, width)
        taken = cell_len(found) + sum(2 + cell_len(figure) for figure in figures)
        assert taken + (2 + n_bar if n_bar else 0) <= width
        assert [text for _, text in FIGURES if text in figures] == figures
        assert sorted(map(ranks.__getitem__, figures)) == sorted(ranks.values())[: len(figures)]
    assert len(figures) == len(FIGURES)
    assert n_bar == 40


def drawn(width: int, *, is_last: bool = False, **facts: Any) -> str:
    """The line of a task on a terminal of a width."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None, no_color=True
    )
    fields = {"unit": "B", "first": 0, "note": ""} | facts.pop("fields", {})
    now = facts.pop("elapsed", 2.0)
    task = Task(
        cast("Any", 0),
        "fetching model.safetensors",
        facts.pop("total", 1000.0),
        facts.pop("completed", 500.0),
        fields=fields,
        _get_time=lambda: now,
        _lock=cast("Any", None),
    )
    task.start_time = 0.0
    assert not facts
    with console.capture() as captured:
        console.print(_Line(task, is_last=is_last), end="")
    return captured.get()


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 30, 60, 80, 200])
@pytest.mark.parametrize("total", [None, 1000.0])
@pytest.mark.parametrize("unit", ["B", "text", ""])
def test_one_line(width: int, total: float | None, unit: str) -> None:
    """Whatever the width is, and whatever is known, one line is drawn and never two."""
    line = drawn(width, total=total, fields={"unit": unit})
    assert line.count("\n") == 1
    assert cell_len(line.rstrip("\n")) <= max(1, width - 3)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"total": 90_868_373.0, "completed": 45_434_186.0}, ["50 %", "45.4/90.9 MB", "2 s left"]),
        ({"total": 4_400_000_000.0, "completed": 2e9}, ["45 %", "2.0/4.4 GB", "1.0 GB/s"]),
        ({"total": None, "completed": 2_000.0}, ["2.0 kB", "1.0 kB/s"]),
        (
            {"total": 700.0, "completed": 140.0, "fields": {"unit": "text", "note": "9 tok/s"}},
            ["20 %", "140/700 texts", "70 texts/s", "9 tok/s", "8 s left"],
        ),
        # What an earlier run did is no speed.
        (
            {"total": 700.0, "completed": 240.0, "fields": {"unit": "text", "first": 200}},
            ["240/700 texts", "20 texts/s", "23 s left"],
        ),
        ({"completed": 0.0}, [" 0 %", "0.0/1.0 kB"]),
        ({"total": 0.0, "completed": 0.0}, ["0/0 B"]),
        ({"fields": {"unit": ""}, "elapsed": 75.0}, ["fetching model.safetensors  1 min"]),
    ],
)
def test_figures(facts: dict[str, Any], words: list[str]) -> None:
    """Amount, speed and time left, in units that people read."""
    line = drawn(120, **facts)
    assert [word for word in words if word not in line] == [], line


def test_last_line() -> None:
    """The line that stays says how long the step took, and no time left."""
    line = drawn(120, completed=1000.0, elapsed=4.0, is_last=True)
    assert "100 %" in line
    assert "250 B/s" in line
    assert line.endswith("4 s\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (3601, "1.0 h"), (1e5, "27.8 h")]
)
def test_duration(seconds: float, text: str) -> None:
    """One unit, the one that fits."""
    assert duration(seconds) == text


def test_together() -> None:
    """The bar of all files counts each byte once, also where a try fails and another resumes."""
    reporter = Counter()
    with reporter.bar("all", 300) as advance:
        telling: Reporter = Together(reporter, advance)
        with telling.bar("a", 100) as one:
            one(60)
            one(40)
        with contextlib.suppress(OSError), telling.bar("b", 200) as one:
            one(150)
            raise OSError
        assert reporter.counted["all"] == 100
        with telling.bar("b", 200, done=150) as one:
            assert reporter.counted["all"] == 250
            one(50)
    assert reporter.counted == {"all": 300, "a": 100, "b": 200}
