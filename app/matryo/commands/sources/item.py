"""One text of an input, with what comes with the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import click

from matryo.commands.sources.rows import NOTHING, Asked, Key

Format = Literal["lines", "jsonl", "csv", "parquet"]


class Item(NamedTuple):
    """One text of the input.

    Attributes:
        line: of the file, counted from 1, for messages; of Parquet, the row.
        text: the text.
        key: the id of the row, handed through; None if the row has none.
        asked: what a JSON row asks for.
        kept: the values of the columns that `--keep` names: a `Json`, a string, or a Python
            object of Parquet.
        name: of the file, where the input has several; else empty.
        unit: what `line` counts.
    """

    line: int
    text: str
    key: Key | None = None
    asked: Asked = NOTHING
    kept: tuple[object, ...] = ()
    name: str = ""
    unit: str = "line"

    @property
    def where(self) -> str:
        """The item's line, for messages."""
        return f"{self.name}, {self.unit} {self.line}" if self.name else f"{self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How the bytes of an input become items.

    Attributes:
        form: the format that the user chose; None to go by each name.
        text: the column of the texts; None for `text` or `input`.
        key: the column of the ids; None for `id` or `custom_id`, where there is one.
        keep: columns that are handed through.
        delimiter: between the cells of CSV; None to go by each file.
    """

    form: Format | None = None
    text: str | None = None
    key: str | None = None
    keep: tuple[str, ...] = ()
    delimiter: str | None = None


class Warnings:
    """Prints each warning once, however often the input is read."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, topic: str, sentence: str) -> None:
        """Print a warning, unless one of this topic was printed."""
        if topic not in self._said:
            self._said.add(topic)
            click.echo(f"warning: {sentence}", err=True)
