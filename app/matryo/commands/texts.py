"""Texts of a file or of standard input: plain lines, or JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from matryo.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Item:
    """One text of the file.

    Attributes:
        line: counted from 1, for messages.
        key: the `id` of a JSONL object, handed through; None if it has none.
    """

    line: int
    text: str
    key: object = None


@contextmanager
def open_lines(file: Path) -> Generator[Iterable[bytes], None, None]:
    """The lines of a file, `-` for standard input.

    Raises:
        InvalidRequest: it cannot be opened.
    """
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as exc:
        raise InvalidRequest(f"{file}: cannot be read: {exc.strerror}") from exc
    with opened:
        yield opened


def read_items(lines: Iterable[bytes], name: str) -> Iterator[Item]:
    """Texts of a file: JSONL if its first line is an object with "text" or "input", else lines.

    Args:
        lines: with or without their line ends.
        name: the file's, for messages.

    Raises:
        InvalidRequest: a line that is not UTF-8, or, in JSONL, not such an object.
    """
    as_json: bool | None = None
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip(b"\r\n")
        if as_json is None:
            as_json = _text_of(line) is not None
        if as_json:
            found = _text_of(line)
            if found is None:
                raise InvalidRequest(
                    f'{name}, line {number}: not a JSON object with a string "text" or "input", '
                    "as the first line is"
                )
            yield Item(number, *found)
            continue
        try:
            yield Item(number, line.decode("utf-8"))
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"{name}, line {number}: not UTF-8: {exc.reason}") from exc


def _text_of(line: bytes) -> tuple[str, object] | None:
    try:
        data: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict):
        return None
    fields = cast("dict[str, object]", data)
    text = fields.get("text", fields.get("input"))
    return (text, fields.get("id")) if isinstance(text, str) else None
