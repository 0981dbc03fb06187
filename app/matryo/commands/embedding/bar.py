"""What a long run says of itself: texts and tokens a second, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from matryo.core.terminal import can_draw, duration

Advance = Callable[[int, int], None]
"""Takes the rows, and the tokens, that were done since the last call."""

_LOG_S = 60.0


@contextmanager
def progress_bar(
    n_rows: int | None,
    n_done: int,
    now: Callable[[], float] = time.monotonic,
    *,
    is_hidden: bool = False,
) -> Generator[Advance, None, None]:
    """A bar on a terminal; elsewhere, a line on standard error every minute.

    Args:
        n_rows: of the input; None if that is unknown.
        n_done: rows that an earlier run has done.
        now: seconds of a clock.
        is_hidden: say nothing: the rows themselves appear on the terminal.
    """
    if is_hidden:
        yield lambda _rows, _tokens: None
        return
    if not can_draw(sys.stderr):
        yield _Lines(n_rows, n_done, now).advance
        return
    from matryo.core.drawing import bar

    started, n_tokens = now(), 0
    with bar("embedding", n_rows, "text", stays=True, done=n_done) as shown:

        def advance(n_texts: int, n_more: int) -> None:
            nonlocal n_tokens
            n_tokens += n_more
            shown.note(f"{n_tokens / max(now() - started, 1e-9):,.0f} tok/s")
            shown.advance(n_texts)

        yield advance


class _Lines:
    """Progress for a log: a line a minute."""

    def __init__(self, n_rows: int | None, n_done: int, now: Callable[[], float]) -> None:
        self._n_rows = n_rows
        self._n_first = self._n_done = n_done
        self._n_tokens = 0
        self._now = now
        self._started = self._last = now()

    def advance(self, n_texts: int, n_tokens: int) -> None:
        self._n_done += n_texts
        self._n_tokens += n_tokens
        if self._now() - self._last >= _LOG_S:
            self._last = self._now()
            click.echo(self._line(self._last - self._started), err=True)

    def _line(self, elapsed_s: float) -> str:
        rate = (self._n_done - self._n_first) / elapsed_s
        total = "" if self._n_rows is None else f" of {self._n_rows:,}"
        line = (
            f"embedding: {self._n_done:,}{total} texts, {rate:,.0f} texts/s, "
            f"{self._n_tokens / elapsed_s:,.0f} tok/s"
        )
        if self._n_rows is None or not rate:
            return line
        return f"{line}, {duration((self._n_rows - self._n_done) / rate)} left"
