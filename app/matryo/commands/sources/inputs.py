"""The inputs of `matryo embed`, one after another, as one stream of items."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from matryo.commands.remote import Remote
from matryo.commands.sources.delimited import read_csv
from matryo.commands.sources.find import STANDARD_INPUT, Found, compression, find_inputs
from matryo.commands.sources.item import Item, Reading, Warnings
from matryo.commands.sources.lines import read_texts, refuse_columns
from matryo.commands.sources.parquet import TypeBook, read_parquet
from matryo.commands.sources.rows import NOTHING, Asked
from matryo.core.errors import InvalidRequest
from matryo.service.limits import WINDOW_TEXTS

_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


class Digest:
    """A hash of the items of a stream, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, item: Item) -> None:
        """Take the next item."""
        key = "" if item.key is None else f"{item.key.name}={item.key.json}"
        asked = "" if item.asked is NOTHING else repr(item.asked)
        kept = repr(item.kept) if item.kept else ""
        sizes = f"{len(item.text)},{len(key)},{len(asked)}:"
        row = f"{sizes}{item.text}{key}{asked}{kept}\n"
        self._hash.update(row.encode("utf-8", "surrogatepass"))

    def hex(self) -> str:
        """The hash of all items so far."""
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is known of the inputs before any work is done.

    Attributes:
        asked: what rows ask for, each with the first row that asks for it.
        items: all items, from the first.
        n_rows: how many there are; None if that is unknown.
        identity: names the content, as far as it is known.
    """

    asked: dict[Asked, Item]
    items: Iterator[Item]
    n_rows: int | None
    identity: str


class Inputs:
    """Open inputs; see `open_inputs`.

    Attributes:
        book: the types of columns that are handed through, if every input is Parquet.
        stats: of the files of this machine that are read.
        urls: of the files that are read.
    """

    def __init__(self, found: Sequence[Found], reading: Reading) -> None:
        self._found = found
        self._reading = reading
        self._warnings = Warnings()
        self._is_plain = reading == Reading(reading.form, delimiter=reading.delimiter)
        self.book = TypeBook()
        self.is_parquet = all(one.form == "parquet" for one in found)
        self.stats = [found_stat for one in found if (found_stat := _stat(one))]
        self.urls = [one.name for one in found if one.is_url]
        self._start = _position(found)
        if not self._is_plain and any(one.form == "lines" for one in found):
            refuse_columns(next(one.name for one in found if one.form == "lines"))

    @property
    def can_read_twice(self) -> bool:
        """Whether every input is a file of this machine."""
        return all(_is_file(one) for one in self._found)

    def items(self) -> Iterator[Item]:
        """Every item, in order; a pipe's once.

        Raises:
            InvalidRequest: a file, or a row, cannot be read.
            SettingsInvalid: a package for a format is not installed.
        """
        for one in self._found:
            with ExitStack() as stack:
                yield from self._read(one, stack)

    def _read(self, one: Found, stack: ExitStack) -> Iterator[Item]:
        file = _open(one, stack, self._start)
        name = "standard input" if one.name == STANDARD_INPUT else one.name
        label = name if len(self._found) > 1 else ""
        reading = replace(self._reading, form=one.form)
        if one.form == "parquet":
            return read_parquet(file, name, reading, self._warnings, self.book, label)
        if one.form == "csv":
            return read_csv(file, name, reading, self._warnings, label)
        return read_texts(file, name, reading, self._warnings, chosen=one.chosen, label=label)

    def read_ahead(self) -> Ahead:
        """The items, of which a file's are all checked by now, and a pipe's or URL's first 512.

        Raises:
            InvalidRequest: a row that cannot be read; also later, while a pipe is read.
        """
        asked: dict[Asked, Item] = {}
        versions = [f"{one.name} {Remote(one.name).version()}" for one in self._found if one.is_url]
        if not self.can_read_twice:
            items = self.items()
            head = list(islice(items, WINDOW_TEXTS))
            for item in head:
                asked.setdefault(item.asked, item)
            return Ahead(asked, chain(head, items), None, "\n".join(versions))
        digest, n_rows = Digest(), 0
        for item in self.items():
            asked.setdefault(item.asked, item)
            digest.add(item)
            n_rows += 1
        return Ahead(asked, self.items(), n_rows, digest.hex())

    def is_same_file(self, path: Path) -> bool:
        """Whether `path` is a file that is read, under this name or another."""
        try:
            found = path.stat()
        except OSError:
            return False
        return any(os.path.samestat(found, one) for one in self.stats)


def open_inputs(names: Sequence[str], reading: Reading) -> Inputs:
    """The inputs of some names; `-` is standard input.

    The format is `reading.form`, or follows each name: JSON lines for `.jsonl` and `.ndjson`, CSV
    for `.csv` and `.tsv`, Parquet for `.parquet` and `.pq`, else lines. The format of a pipe is
    guessed.

    Raises:
        InvalidRequest: a file cannot be opened, or is a `.json` file.
        SettingsInvalid: a package for a URL is not installed.
    """
    return Inputs(find_inputs(names, reading.form), reading)


def _standard_input() -> BinaryIO:
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the shell
        raise InvalidRequest("standard input is closed; name a file")
    return sys.stdin.buffer


def _position(found: Sequence[Found]) -> int | None:
    """Where standard input begins, if it is a file; None otherwise."""
    if not any(one.name == STANDARD_INPUT and _is_file(one) for one in found):
        return None
    return _standard_input().tell()


def _open(one: Found, stack: ExitStack, start: int | None) -> BinaryIO:
    """The bytes of an input, decompressed, from the beginning."""
    if one.name == STANDARD_INPUT:
        file = _standard_input()
        if start is not None:
            file.seek(start)
        if one.form == "parquet" and start is None:
            raise InvalidRequest(
                "standard input: Parquet has its index at its end, and cannot be read from a pipe; "
                "give the file's name"
            )
        return file
    if one.is_url:
        file = stack.enter_context(Remote(one.name).open())
    else:
        try:
            file = stack.enter_context(Path(one.name).open("rb"))  # noqa: SIM115 - the stack closes it
        except OSError as exc:
            raise InvalidRequest(f"{one.name}: cannot be read: {exc.strerror}") from exc
    suffix = compression(one.name)
    if not suffix:
        return file
    return cast("BinaryIO", stack.enter_context(_OPENERS[suffix](file)))


def _stat(one: Found) -> os.stat_result | None:
    if one.is_url:
        return None
    try:
        if one.name == STANDARD_INPUT:
            return os.fstat(_standard_input().fileno())
        return Path(one.name).stat()
    except OSError as exc:
        if one.name == STANDARD_INPUT:  # a stand-in without a descriptor
            return None
        raise InvalidRequest(f"{one.name}: cannot be read: {exc.strerror}") from exc


def _is_file(one: Found) -> bool:
    found = _stat(one)
    return found is not None and stat.S_ISREG(found.st_mode)
