"""Checks the table of characters in a tokenizer, which the library reads without looking.

The table is a double array (a trie over the bytes of a character) and a text with replacements. The
library fails at the first character that leads out of either, which may be one that a caller sends
long after the build.

Source: spm_precompiled, `src/lib.rs`; darts-clone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

_BYTES = np.arange(1, 256, dtype=np.int64)
_STEP = 4096
# A byte 10xxxxxx is within a character of UTF-8.
_WITHIN = 0x80


def check_charsmaps(normalizer: bytes) -> None:
    """Check every table in the JSON of a normalizer.

    Raises:
        ValueError: a character leads out of a table.
    """
    for table in _tables(json.loads(normalizer)):
        check_charsmap(base64.b64decode(table))


def _tables(value: object) -> Iterator[str]:
    """Every `precompiled_charsmap` in a value."""
    if isinstance(value, dict):
        table = cast("dict[str, object]", value)
        if isinstance(found := table.get("precompiled_charsmap"), str):
            yield found
    elif not isinstance(value, list):
        return
    for item in cast("Any", value.values() if isinstance(value, dict) else value):
        yield from _tables(item)


def check_charsmap(content: bytes) -> None:
    """Follow every path through one table.

    Raises:
        ValueError: a path leads out of the array, or to no beginning of a character in the text.
    """
    n_bytes = int.from_bytes(content[:4], "little")
    if len(content) < 4 or n_bytes % 4 or n_bytes + 4 > len(content):  # noqa: PLR2004 - a uint32
        raise ValueError(f"its table of characters says {n_bytes:,} of {len(content):,} bytes")
    units = np.frombuffer(content, "<u4", n_bytes // 4, 4).astype(np.int64)
    replacements = content[4 + n_bytes :]
    replacements.decode()
    if not len(units):
        raise ValueError("its table of characters is empty")
    seen = np.zeros(len(units), np.bool_)
    frontier = _inside(_offset(units[:1]), units)
    while len(frontier):
        seen[frontier] = True
        found = [
            _children(frontier[start : start + _STEP], units, replacements)
            for start in range(0, len(frontier), _STEP)
        ]
        frontier = np.unique(np.concatenate(found))
        frontier = frontier[~seen[frontier]]


def _children(
    nodes: NDArray[np.int64], units: NDArray[np.int64], replacements: bytes
) -> NDArray[np.int64]:
    """The nodes that one more byte leads to."""
    steps = nodes[:, None] ^ _BYTES
    after = units[_inside(steps, units)]
    taken = (after & (1 << 31 | 0xFF)) == _BYTES
    steps, after = steps[taken], after[taken]
    nodes = _inside(steps ^ _offset(after), units)
    ends = units[nodes[(after >> 8 & 1) == 1]] & ((1 << 31) - 1)
    for end in cast("list[int]", np.unique(ends).tolist()):
        within = replacements[end : end + 1] and replacements[end] & 0xC0 == _WITHIN
        if end > len(replacements) or within:
            raise ValueError(f"its table of characters leads to {end:,} of {len(replacements):,}")
    return nodes


def _offset(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """What a unit adds to an index, by exclusive or."""
    return units >> 10 << ((units & 1 << 9) >> 6)


def _inside(nodes: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same indexes, all of them in the array."""
    if len(nodes) and int(nodes.max()) >= len(units):
        raise ValueError(
            f"its table of characters leads to unit {int(nodes.max()):,} of {len(units):,}"
        )
    return nodes
