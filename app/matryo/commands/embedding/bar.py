"""What a long run says of itself: texts and tokens a second, and the time left."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

Advance = Callable[[int, int], None]
"""Takes the rows, and the tokens, that were done since the last call."""

_LOG_S = 60.0
_MINUTE_S, _HOUR_S = 60, 3600


@contextmanager
def progress_bar(
    n_rows: int | None, n_done: int, now: Callable[[], float] = time.monotonic
) -> Generator[Advance, None, None]:
    """A bar on a terminal; elsewhere, a line on standard error every minute.

    Args:
        n_rows: of the input; None if that is unknown.
        n_done: rows that an earlier run has done.
        now: seconds of a clock.
    """
    if not sys.stderr.isatty():
        yield _Lines(n_rows, n_done, now).advance
        return
    from tqdm import tqdm

    size = shutil.get_terminal_size()  # tqdm hides its bar where a pty reports 0 rows
    started, n_tokens = now(), 0
    with tqdm(
        total=n_rows,
        initial=n_done,
        ncols=size.columns,
        nrows=size.lines,
        desc="embedding",
        unit="text",
    ) as shown:

        def advance(n_texts: int, n_more: int) -> None:
            nonlocal n_tokens
            n_tokens += n_more
            rate = n_tokens / max(now() - started, 1e-9)
            shown.set_postfix_str(f"{rate:,.0f} tok/s", refresh=False)
            shown.update(n_texts)

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
        return f"{line}, {_duration((self._n_rows - self._n_done) / rate)} left"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"
