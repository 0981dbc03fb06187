"""Progress of a long step, shown on a terminal and nowhere else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`progress(what, total_bytes)` shows a bar while open; call its value with bytes done."""


@contextmanager
def bar(what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """A bar on standard error if that is a terminal; silent otherwise."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    size = shutil.get_terminal_size()  # tqdm hides its bar where a pty reports 0 rows
    with tqdm(
        total=total or None,
        ncols=size.columns,
        nrows=size.lines,
        desc=what,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
    ) as shown:
        yield lambda n_bytes: (shown.update(n_bytes), None)[1]


@contextmanager
def count(what: str, unit: str) -> Generator[Callable[[int], None], None, None]:
    """A counter of things done, their total unknown; on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit) as shown:
        yield lambda n: (shown.update(n), None)[1]
