"""Texts of plain lines, and of JSON lines.

Only a line feed ends a line, with or without a carriage return before it. A byte order mark at
the start of a line is no text. A blank line is the empty text; blank lines at the end of the
input are no rows.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import click
import orjson

from matryo.commands.sources.item import Format, Item, Reading, Warnings
from matryo.commands.sources.rows import Row, read_record, read_row
from matryo.core.errors import InvalidRequest

_NAMES: dict[Format, str] = {"lines": "lines", "jsonl": "JSON lines"}
_MARK = "\ufeff"
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32


def read_texts(
    file: Iterable[bytes],
    name: str,
    reading: Reading,
    warnings: Warnings,
    *,
    chosen: bool,
    label: str = "",
) -> Iterator[Item]:
    """Every text of one file, in order.

    Args:
        file: lines of bytes, each with its line feed.
        name: of the file, for messages.
        reading: the format, which is None where the first line with text decides; the columns.
        warnings: print each warning once.
        chosen: whether the user named the format.
        label: `Item.name`.

    Raises:
        InvalidRequest: a line that is not UTF-8, that is no row, or, where the format was
            guessed, that is of the other format.
    """
    return _Texts(file, name, reading, warnings, chosen=chosen, label=label).items()


class _Texts:
    """The lines of one file; see `read_texts`."""

    def __init__(
        self,
        file: Iterable[bytes],
        name: str,
        reading: Reading,
        warnings: Warnings,
        *,
        chosen: bool,
        label: str,
    ) -> None:
        self._file = file
        self._name = name
        self._reading = reading
        self._is_guess = reading.form is None
        self._chosen = chosen
        self._label = label
        self._say = warnings.say
        self._is_plain = reading == replace(reading, text=None, key=None, keep=())

    def items(self) -> Iterator[Item]:
        for number, line in self._without_last_blanks():
            is_blank = not line.strip()
            if is_blank:
                where = Item(number, "", name=self._label).where
                self._say(
                    "blank", f"{where} is blank; a blank line gets the vector of the empty text"
                )
            if self._reading.form == "jsonl":
                yield self._blank(number) if is_blank else self._row(number, line)
            else:
                if not self._chosen and _is_object(line):
                    self._refuse_or_warn(number)
                yield Item(number, line, name=self._label)

    def _blank(self, number: int) -> Item:
        return Item(number, "", kept=(None,) * len(self._reading.keep), name=self._label)

    def _guess(self, line: str) -> None:
        """Settle the format of a pipe by its first line with text, and print it."""
        form: Format = "jsonl" if line.lstrip().startswith("{") else "lines"
        other: Format = "lines" if form == "jsonl" else "jsonl"
        if form == "lines" and not self._is_plain:
            refuse_columns(self._name)
        self._reading = replace(self._reading, form=form)
        click.echo(
            f"{self._name} is read as {_NAMES[form]}; --format {other} reads it as {_NAMES[other]}",
            err=True,
        )

    def _row(self, number: int, line: str) -> Item:
        row = self._read(number, line)
        for column in row.unused:
            self._say(
                f"column {column}",
                f"{self._name}, line {number}: the column '{column}' is no field of a request "
                "and is not used",
            )
        if row.text is None:
            self._say("null", null_text(f"{self._name}, line {number}"))
        return Item(number, row.text or "", row.key, row.asked, row.kept, self._label)

    def _read(self, number: int, line: str) -> Row:
        reading = self._reading
        try:
            if self._is_plain:
                return read_row(line)
            return read_record(line, reading.text, reading.key, reading.keep)
        except InvalidRequest as exc:
            remedy = ". --format lines reads every line as a text" if self._is_guess else ""
            raise InvalidRequest(f"{self._name}, line {number}: {exc.message}{remedy}") from exc

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

    def _without_last_blanks(self) -> Iterator[tuple[int, str]]:
        """Number and text of every line, without the blank ones at the end.

        Blank lines before the first text stay back until the format is settled by it.
        """
        blanks: list[tuple[int, str]] = []
        for number, line in read_lines(self._file, self._name):
            if not line.strip():
                blanks.append((number, line))
                continue
            if self._reading.form is None:
                self._guess(line)
            yield from blanks
            blanks.clear()
            yield number, line


def refuse_columns(name: str) -> None:
    """Refuse columns of an input of plain lines.

    Raises:
        InvalidRequest: always.
    """
    raise InvalidRequest(
        f"{name} is read as lines, which have no columns. Leave --column, --id-column and --keep "
        "out, or give the --format of the input"
    )


def null_text(where: str) -> str:
    """The warning of a row whose text is null or an empty cell."""
    return f"{where}: the text is null or empty, and gets the vector of the empty text"


def read_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line, without byte order marks and line ends.

    Args:
        file: lines of bytes.
        name: of the file, for messages.

    Raises:
        InvalidRequest: not UTF-8, or the file cannot be read.
    """
    for number, line in decoded(file, name):
        text = line.removesuffix("\n").removesuffix("\r") if line[-1:] == "\n" else line
        yield number, text.removeprefix(_MARK)


def decoded(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line, with marks and line ends; see `read_lines`."""
    try:
        for number, raw in enumerate(file, 1):
            if number == 1:
                _check_encoding(raw, name)
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as exc:
                raise InvalidRequest(
                    f"{name}, line {number}, byte {exc.start + 1}: not UTF-8 ({exc.reason}). "
                    "Convert the file, for instance with: iconv -f LATIN1 -t UTF-8"
                ) from exc
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as exc:  # the latter of compressed files
        reason = exc.strerror if isinstance(exc, OSError) else None
        raise InvalidRequest(f"{name}: cannot be read: {reason or exc}") from exc


def _check_encoding(first: bytes, name: str) -> None:
    """Refuse UTF-16 and UTF-32, with a byte order mark or without, by the first line."""
    wide = first.removesuffix(b"\n")
    halves = (wide[0::2], wide[1::2])
    if first.startswith(_OTHER_MARKS) or any(half and not any(half) for half in halves):
        raise InvalidRequest(
            f"{name}, line 1: UTF-16 or UTF-32, and texts are read as UTF-8. Convert the file, "
            "for instance with: iconv -f UTF-16 -t UTF-8"
        )


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
