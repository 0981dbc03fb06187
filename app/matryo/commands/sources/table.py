"""Which columns of a table are the texts, the ids, and what is handed through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matryo.commands.sources.item import Reading
from matryo.commands.sources.rows import KEYS, TEXTS
from matryo.core.errors import InvalidRequest

_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns of one table.

    Attributes:
        text: the texts.
        key: the ids; None if the table has none.
        keep: what is handed through.
    """

    text: str
    key: str | None
    keep: tuple[str, ...]


def choose_columns(names: Sequence[str], table: str, reading: Reading) -> Chosen:
    """The columns that are read of a table.

    Args:
        names: all columns.
        table: its name, for messages.
        reading: the columns that the user named.

    Raises:
        InvalidRequest: the table lacks a column, or has two of a name that is read.
    """
    text = reading.text or _only(TEXTS, names, table, "--column")
    if text is None:
        raise InvalidRequest(
            f"{table} has no column '{TEXTS[0]}' or '{TEXTS[1]}'; give --column NAME, one of "
            f"{_shown(names)}"
        )
    key = reading.key or _only(KEYS, names, table, "--id-column")
    for name in (text, *([key] if key else []), *reading.keep):
        if name not in names:
            raise InvalidRequest(f"{table} has no column '{name}', but {_shown(names)}")
        if names.count(name) > 1:
            raise InvalidRequest(f"{table} has the column '{name}' {names.count(name)} times")
    return Chosen(text, key, reading.keep)


def _only(wanted: tuple[str, str], names: Sequence[str], table: str, flag: str) -> str | None:
    found = [name for name in wanted if name in names]
    if len(found) > 1:
        raise InvalidRequest(
            f"{table} has the columns '{found[0]}' and '{found[1]}'; choose one with {flag}"
        )
    return found[0] if found else None


def _shown(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST_SHOWN]) + rest
