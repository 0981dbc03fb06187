"""Texts of a file or of standard input: plain lines, or JSON lines.

Only a line feed ends a line, with or without a carriage return before it. A byte order mark at
the start of a line is no text. A blank line is the empty text; blank lines at the end of the
input are no rows.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal

import click
import orjson

from matryo.commands.rows import NOTHING, Asked, Key, read_row
from matryo.core.errors import InvalidRequest
from matryo.service.limits import WINDOW_TEXTS

Format = Literal["lines", "jsonl"]

_NAMES: dict[Format, str] = {"lines": "lines", "jsonl": "JSON lines"}
_JSON_LINES = (".jsonl", ".ndjson")
_MARK = "\ufeff"
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32


@dataclass(frozen=True, slots=True)
class Item:
    """One text of the input.

    Attributes:
        line: counted from 1, for messages.
        text: the text.
        key: the id of a JSON row, handed through; None if the row has none.
        asked: what a JSON row asks for.
    """

    line: int
    text: str
    key: Key | None = None
    asked: Asked = NOTHING


class Source:
    """The open input of `matryo embed`.

    Args:
        file: the bytes.
        name: of the input, for messages.
        form: the format; None to guess it from the first line with text.
        chosen: whether the user named the format.

    Attributes:
        stat: the file's; None if the input has no descriptor.
    """

    def __init__(self, file: BinaryIO, name: str, form: Format | None, *, chosen: bool) -> None:
        self._file = file
        self._name = name
        self._form: Format | None = form
        self._is_guess = form is None
        self._chosen = chosen
        self._said: set[str] = set()
        self.stat = _stat(file)
        is_file = self.stat is not None and stat.S_ISREG(self.stat.st_mode)
        self._start = file.tell() if is_file else None

    def read_ahead(self) -> tuple[dict[Asked, int], Iterator[Item]]:
        """The items, of which a file's are all checked by now, and a pipe's first 512.

        Returns:
            What rows ask for, with the line that asks for it first, as far as the input was
            read; and all items.

        Raises:
            InvalidRequest: a line that cannot be read; also later, while a pipe is read.
        """
        items = self.items()
        if self._start is None:
            head = list(islice(items, WINDOW_TEXTS))
            return _asked(head), chain(head, items)
        asked = _asked(items)
        self._file.seek(self._start)
        return asked, self.items()

    def items(self) -> Iterator[Item]:
        """Every text, in order.

        Raises:
            InvalidRequest: a line that is not UTF-8, that is no row, or, where the format was
                guessed, that is of the other format.
        """
        for number, line in self._without_last_blanks():
            is_blank = not line.strip()
            if is_blank:
                self._say(
                    "blank",
                    f"line {number} is blank; a blank line gets the vector of the empty text",
                )
            if self._form == "jsonl":
                yield Item(number, "") if is_blank else self._row(number, line)
            else:
                if not self._chosen and _is_object(line):
                    self._refuse_or_warn(number)
                yield Item(number, line)

    def _guess(self, line: str) -> None:
        """Settle the format of a pipe by its first line with text, and print it."""
        form: Format = "jsonl" if line.lstrip().startswith("{") else "lines"
        other: Format = "lines" if form == "jsonl" else "jsonl"
        self._form = form
        click.echo(
            f"{self._name} is read as {_NAMES[form]}; --format {other} reads it as {_NAMES[other]}",
            err=True,
        )

    def _row(self, number: int, line: str) -> Item:
        try:
            row = read_row(line)
        except InvalidRequest as exc:
            remedy = ". --format lines reads every line as a text" if self._is_guess else ""
            raise InvalidRequest(f"{self._name}, line {number}: {exc.message}{remedy}") from exc
        for column in row.unused:
            self._say(
                f"column {column}",
                f"{self._name}, line {number}: the column '{column}' is no field of a request "
                "and is not used",
            )
        return Item(number, row.text, row.key, row.asked)

    def _refuse_or_warn(self, number: int) -> None:
        """Name a JSON object among lines: a fault where the format is a guess, else a warning."""
        if self._is_guess:
            raise InvalidRequest(
                f"{self._name}, line {number}: a JSON object, and the lines before are text. Give "
                "--format lines to read every line as a text, or --format jsonl"
            )
        self._say(
            "object",
            f"{self._name}, line {number} is a JSON object, and the file is read as lines by its "
            "name; --format jsonl reads JSON lines",
        )

    def _say(self, topic: str, sentence: str) -> None:
        """Print a warning, once for each topic."""
        if topic not in self._said:
            self._said.add(topic)
            click.echo(f"warning: {sentence}", err=True)

    def _without_last_blanks(self) -> Iterator[tuple[int, str]]:
        """Number and text of every line, without the blank ones at the end.

        Blank lines before the first text stay back until the format is settled by it.
        """
        blanks: list[tuple[int, str]] = []
        for number, line in read_lines(self._file, self._name):
            if not line.strip():
                blanks.append((number, line))
                continue
            if self._form is None:
                self._guess(line)
            yield from blanks
            blanks.clear()
            yield number, line

    def is_same_file(self, path: Path) -> bool:
        """Whether `path` is the file that is read, under this name or another."""
        try:
            return self.stat is not None and os.path.samestat(path.stat(), self.stat)
        except OSError:
            return False


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line, without byte order marks and line ends.

    Args:
        file: bytes.
        name: of the file, for messages.

    Raises:
        InvalidRequest: not UTF-8, or the file cannot be read.
    """
    try:
        for number, raw in enumerate(file, 1):
            if number == 1:
                _check_encoding(raw, name)
            line = raw.removesuffix(b"\n").removesuffix(b"\r") if raw[-1:] == b"\n" else raw
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as exc:
                raise InvalidRequest(
                    f"{name}, line {number}, byte {exc.start + 1}: not UTF-8 ({exc.reason}). "
                    "Convert the file, for instance with: iconv -f LATIN1 -t UTF-8"
                ) from exc
            yield number, text.removeprefix(_MARK)
    except OSError as exc:
        raise InvalidRequest(f"{name}: cannot be read: {exc.strerror or exc}") from exc


def _check_encoding(first: bytes, name: str) -> None:
    """Refuse UTF-16 and UTF-32, with a byte order mark or without, by the first line."""
    wide = first.removesuffix(b"\n")
    halves = (wide[0::2], wide[1::2])
    if first.startswith(_OTHER_MARKS) or any(half and not any(half) for half in halves):
        raise InvalidRequest(
            f"{name}, line 1: UTF-16 or UTF-32, and texts are read as UTF-8. Convert the file, "
            "for instance with: iconv -f UTF-16 -t UTF-8"
        )


@contextmanager
def open_source(file: Path, form: Format | None) -> Generator[Source, None, None]:
    """The input of a name: `-` is standard input.

    The format is `form`, or follows the name: JSON lines for `.jsonl` and `.ndjson`, else
    lines. The format of a pipe is guessed.

    Raises:
        InvalidRequest: the file cannot be opened, or is a `.json` file.
    """
    if str(file) == "-":
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the shell
            raise InvalidRequest("standard input is closed; name a file")
        yield Source(sys.stdin.buffer, "standard input", form, chosen=form is not None)
        return
    try:
        opened = file.open("rb")
    except OSError as exc:
        raise InvalidRequest(f"{file}: cannot be read: {exc.strerror}") from exc
    with opened:
        is_file = stat.S_ISREG(os.fstat(opened.fileno()).st_mode)
        named = _form_of(file) if form is None and is_file else form
        yield Source(opened, str(file), named, chosen=form is not None)


def _form_of(file: Path) -> Format:
    suffix = file.suffix.lower()
    if suffix == ".json":
        raise InvalidRequest(
            f"{file}: a .json file is one JSON document, and one row a line is needed. Give "
            "--format jsonl if each line is an object, or --format lines"
        )
    return "jsonl" if suffix in _JSON_LINES else "lines"


def _stat(file: BinaryIO) -> os.stat_result | None:
    try:
        return os.fstat(file.fileno())
    except OSError:  # a stand-in without a descriptor
        return None


def _asked(items: Iterable[Item]) -> dict[Asked, int]:
    """What items ask for, and the first line of each."""
    first: dict[Asked, int] = {}
    for item in items:
        first.setdefault(item.asked, item.line)
    return first


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
