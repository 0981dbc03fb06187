"""Is a stream a terminal that can be drawn on, and what is drawn there now?

Nothing is imported to ask: the library that draws is loaded only where the answer is yes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

_PLAIN = frozenset(("dumb", "unknown"))  # terminals, by TERM, that cannot move their cursor
_MINUTE_S, _HOUR_S = 60, 3600

_erasers: list[Callable[[], object]] = []


def can_draw(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that shows colours and bars; None is a closed one.

    Colours are left out where NO_COLOR is set; lines and bars stay.
    """
    if stream is None or not stream.isatty():
        return False
    return os.environ.get("TERM", "").lower() not in _PLAIN


def on_erase(erase: Callable[[], object]) -> None:
    """Have `erase` called before the process says its last words."""
    _erasers.append(erase)


def erase() -> None:
    """Erase whatever another thread still draws: the command ends now."""
    for one in _erasers:
        one()


def duration(seconds: float) -> str:
    """A time in one unit: `30 s`, `14 min`, `27.7 h`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"
