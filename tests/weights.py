"""The memory that processes take for the weights of one store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_START = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(?P<path>.*)$")


@dataclass
class Weights:
    """Bytes of a process that are pages of a store's files.

    Attributes:
        resident: in memory.
        own: the process's part, if a page that n processes map counts as 1/n of a page in each.
        private: pages that no other process has, since this one wrote to them.
    """

    resident: int = 0
    own: int = 0
    private: int = 0


def mapped_weights(pid: int, home: Path) -> Weights:
    """The weights that a process has mapped from the store `home`.

    Source: proc(5), `smaps`.
    """
    weights, inside = Weights(), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if start := _START.match(line):
            inside = start["path"].startswith(f"{home.resolve()}/")
        elif inside:
            key, value, *_ = line.split()
            n_bytes = int(value) * 1024 if value.isdecimal() else 0
            if key == "Rss:":
                weights.resident += n_bytes
            elif key == "Pss:":
                weights.own += n_bytes
            elif key == "Private_Dirty:":
                weights.private += n_bytes
    return weights
