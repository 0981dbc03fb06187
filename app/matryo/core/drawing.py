"""Bars and steps at the foot of a terminal, drawn with rich.

Loaded only where standard error is a terminal. The cursor is never hidden and no mode of the
terminal is changed: a process that is killed leaves a terminal that works.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from matryo.core.terminal import duration, on_erase

_MOST_COLUMNS = 110  # a longer line is hard to read
_MARGIN = 3  # columns; the terminal writes ^C behind a line, which must not begin another
_LEAST_BAR, _MOST_BAR = 5, 40
_EARLY_S = 5.0  # before, what was done lately says little of the speed
_DISPENSABLE = 3  # figures of this rank and above make room for a bar
_GAP = "  "
_SPINNER, _PLAIN_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_TURNS_A_S = 10
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def console(stream: TextIO) -> Console:
    """What writes text, tables and panels to a terminal; as plain as what it is given."""
    return _Console(
        file=stream,
        force_terminal=True,
        force_interactive=True,
        markup=False,
        emoji=False,
        highlight=False,
    )


class _Console(Console):
    """A console that leaves the cursor as it is."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002, FBT001, FBT002 - rich's signature
        """Do nothing."""
        return False


class Bar:
    """One step that is drawn.

    Args:
        block: what draws.
        task: the step there.
    """

    def __init__(self, block: _Block, task: TaskID) -> None:
        self._block, self._task = block, task

    def advance(self, n_units: int) -> None:
        """Count units that were done since the last call."""
        self._block.advance(self._task, n_units)

    def note(self, text: str) -> None:
        """Show a figure of the caller's own, in place of the one before."""
        self._block.update(self._task, note=text)


@contextmanager
def bar(
    what: str, total: int | None, unit: str, *, stays: bool, done: int = 0
) -> Generator[Bar, None, None]:
    """Draw a bar while the context is open.

    Args:
        what: the step, in a few words.
        total: units of the whole step; None if that number is unknown.
        unit: `B` for bytes, or the name of one item.
        stays: leave the last line on the terminal.
        done: units that were done before; they do not count as speed.
    """
    with _drawn(what, total, unit, stays=stays, done=done) as shown:
        yield shown


@contextmanager
def step(what: str) -> Generator[None, None, None]:
    """Show that a step goes on, and for how long, while the context is open."""
    with _drawn(what, None, "", stays=False):
        yield


@contextmanager
def _drawn(
    what: str, total: int | None, unit: str, *, stays: bool, done: int = 0
) -> Generator[Bar, None, None]:
    block, task = _screen.open(what, total, unit, done)
    try:
        yield Bar(block, task)
    finally:
        _screen.close(task, stays=stays)


class _Screen:
    """The one block of lines that this process draws, while any bar or step is open."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._block: _Block | None = None

    def open(self, what: str, total: int | None, unit: str, done: int) -> tuple[_Block, TaskID]:
        """Draw one line more."""
        with self._lock:
            if self._block is None:
                self._block = _Block(
                    console=console(sys.stderr),
                    transient=True,
                    redirect_stdout=False,  # a command's output is not for the terminal's foot
                )
            task = self._block.add_task(
                what, total=total, completed=done, unit=unit, first=done, note=""
            )
            # The thread that draws takes no signals: one that a caller holds back would reach it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._block.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return self._block, task

    def close(self, task: TaskID, *, stays: bool) -> None:
        """Draw one line less."""
        with self._lock:
            block = self._block
            if block is None:  # erased: the process ends
                return
            (closed,) = [one for one in block.tasks if one.id == task]
            if len(block.tasks) == 1:
                self.erase()
            else:
                block.remove_task(task)
            if stays:
                block.console.print(_Line(closed, is_last=True))

    def erase(self) -> None:
        """Draw nothing more, and leave nothing behind."""
        with self._lock:
            block, self._block = self._block, None
            if block is not None:
                block.stop()


_screen = _Screen()
on_erase(_screen.erase)


class _Block(Progress):
    """rich's progress, a line for each step."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines."""
        tasks = self.tasks
        widest = max((cell_len(task.description) for task in tasks), default=0)
        for task in tasks:
            yield _Line(task, widest)


class _Line:
    """One step as one line, whatever the width of the terminal.

    Args:
        task: the step.
        widest: columns of the longest name of a step that is drawn now.
        is_last: the step is over; its line says how long it took.
    """

    def __init__(self, task: Task, widest: int = 0, *, is_last: bool = False) -> None:
        self._task, self._is_last = task, is_last
        self._label = task.description + " " * (widest - cell_len(task.description))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The line, as rich asks for it."""
        task = self._task
        width = max(1, min(options.max_width - _MARGIN, _MOST_COLUMNS))
        if not task.fields["unit"]:
            frames = _PLAIN_SPINNER if options.ascii_only else _SPINNER
            turn = frames[int((task.elapsed or 0) * _TURNS_A_S) % len(frames)]
            figures = [(0, duration(task.elapsed or 0))]
            label, figures, _ = _fit(f"{turn} {task.description}", figures, width)
            yield Text(_GAP.join((label, *figures)), no_wrap=True, end="")
            yield Segment.line()
            return
        label, figures, n_bar = _fit(self._label, _figures(task, is_last=self._is_last), width)
        yield Text(label, no_wrap=True, end="")
        if n_bar:
            yield Text(_GAP, end="")
            pulse = task.total is None and not self._is_last
            drawn = ProgressBar(
                total=task.total if pulse else task.total or max(1, task.completed),
                completed=task.completed,
                width=n_bar,
                pulse=pulse,
                complete_style="cyan",
                finished_style="green",
                pulse_style="cyan",
                animation_time=task.elapsed,
            )
            yield from console.render(drawn, options.update(width=n_bar))
        if figures:
            yield Text(_GAP + _GAP.join(figures), no_wrap=True, end="")
        yield Segment.line()


def _fit(label: str, figures: list[tuple[int, str]], width: int) -> tuple[str, list[str], int]:
    """What of a line fits: the label, cut; the figures; the columns of the bar, 0 for none.

    Args:
        label: names the step.
        figures: in the order in which they are shown, each with its rank; those of the highest
            rank go first.
        width: columns of the line.
    """
    kept = list(figures)

    def taken() -> int:
        return cell_len(label) + sum(len(_GAP) + cell_len(text) for _, text in kept)

    bar = len(_GAP) + _LEAST_BAR
    while taken() + bar > width and max(kept)[0] >= _DISPENSABLE:
        kept.remove(max(kept))
    while taken() > width and len(kept) > 1:
        kept.remove(max(kept))
    if taken() > width:
        most = width - sum(len(_GAP) + cell_len(text) for _, text in kept)
        label = _cut(label, most) if most >= 1 else ""
        if not label:
            kept = [(rank, text) for rank, text in kept if cell_len(text) + len(_GAP) <= width]
    left = width - taken() - len(_GAP)
    return label, [text for _, text in kept], min(left, _MOST_BAR) if left >= _LEAST_BAR else 0


def _cut(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[:-1]
    return text + "…"


def _figures(task: Task, *, is_last: bool) -> list[tuple[int, str]]:
    """How far a step is, each figure with its rank; 0 is kept longest."""
    unit, done, total = task.fields["unit"], task.completed, task.total
    elapsed = task.elapsed or 0
    speed = (done - task.fields["first"]) / elapsed if elapsed else 0.0
    if not is_last and elapsed > _EARLY_S:
        speed = task.speed or 0.0
    figures = [(0, f"{task.percentage:3.0f} %")] if total else []
    figures.append((2 if total else 0, _amount(done, total, unit)))
    if speed:
        figures.append((4, f"{_one(speed, unit)}/s"))
    if note := task.fields["note"]:
        figures.append((3, note))
    if is_last:
        figures.append((1, duration(elapsed)))
    elif total and speed:
        figures.append((1, f"{duration(max(0.0, (total - done) / speed))} left"))
    return figures


def _amount(done: float, total: float | None, unit: str) -> str:
    """How many units are done, of how many."""
    if unit != "B":
        of = f"/{total:,.0f}" if total is not None else ""
        return f"{done:,.0f}{of} {unit}s"
    if total is None:
        return _one(done, unit)
    size, name = _scale(total)
    digits = 1 if size > 1 else 0
    of = f"{total / size:.{digits}f}"
    return f"{done / size:>{len(of)}.{digits}f}/{of} {name}"


def _one(number: float, unit: str) -> str:
    if unit != "B":
        return f"{number:,.0f} {unit}s"
    size, name = _scale(number)
    return f"{number / size:.{1 if size > 1 else 0}f} {name}"


def _scale(n_bytes: float) -> tuple[float, str]:
    return next(((size, name) for size, name in _UNITS if n_bytes >= size), (1.0, "B"))
