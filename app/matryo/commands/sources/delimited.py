"""Texts of CSV: a header, then a record for each text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence

import orjson

from matryo.commands.sources.item import Item, Reading, Warnings
from matryo.commands.sources.lines import decoded, null_text
from matryo.commands.sources.rows import KEYS, Key
from matryo.commands.sources.table import choose_columns
from matryo.core.errors import InvalidRequest

_DELIMITERS = ",;\t|"
_MARK = "\ufeff"
# csv refuses cells of more than 128 KiB by default; a text may be any size. Its C code has a long.
_MOST_CHARACTERS = (1 << 31) - 1


def read_csv(
    file: Iterable[bytes], name: str, reading: Reading, warnings: Warnings, label: str = ""
) -> Iterator[Item]:
    """The text of every record, in order.

    A cell may be quoted, and may then hold delimiters, doubled quotes and line feeds. Blank lines
    between records are no records. `Item.line` is the line where the record begins.

    Args:
        file: lines of bytes.
        name: of the file, for messages.
        reading: the columns, and the delimiter.
        warnings: print each warning once.
        label: `Item.name`.

    Raises:
        InvalidRequest: not UTF-8, no CSV, no such column, or a record with other cells than the
            header.
    """
    csv.field_size_limit(_MOST_CHARACTERS)
    lines = (line for _, line in decoded(file, name))
    first = next(lines, "").removeprefix(_MARK)
    delimiter = reading.delimiter or _guess(first, name)
    records = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    text, key, key_name = 0, -1, KEYS[0]
    keep: list[int] = []
    is_bare = True
    for line, cells in _records(records, name):
        if header is None:
            header = cells
            columns = choose_columns(header, name, reading)
            text, keep = header.index(columns.text), [header.index(one) for one in columns.keep]
            key = -1 if columns.key is None else header.index(columns.key)
            key_name = columns.key if columns.key in KEYS else key_name
            is_bare = not keep
            continue
        if len(cells) != len(header):
            raise InvalidRequest(
                f"{name}, line {line}: {len(cells)} cells, and the header has {len(header)}. Quote "
                f"cells that hold the delimiter {delimiter!r}, or give the right --delimiter"
            )
        if not cells[text]:
            warnings.say("null", null_text(f"{name}, line {line}"))
        found = None if key < 0 else Key(key_name, orjson.dumps(cells[key]).decode())
        kept = () if is_bare else tuple(cells[one] for one in keep)
        yield Item(line, cells[text], found, kept=kept, name=label)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _records(records: Iterator[Sequence[str]], name: str) -> Iterator[tuple[int, list[str]]]:
    """The line where each record begins, and its cells."""
    reader: object = records
    while True:
        begin: int = getattr(reader, "line_num", 0) + 1
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as exc:
            raise InvalidRequest(
                f"{name}, line {begin}: no CSV: {exc}. Double the quotes inside of quoted cells"
            ) from exc
        if cells:
            yield begin, list(cells)


def _guess(header: str, name: str) -> str:
    """The delimiter that stands most often in the header outside of quotes; a comma if none does.

    The header of a `.tsv` file has a tab.
    """
    if ".tsv" in name.lower():
        return "\t"
    plain = "".join(header.split('"')[::2])
    return max(_DELIMITERS, key=plain.count)
