"""Tables on a terminal. Piped output is the business of each command: scripts read its columns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matryo.core.printable import escaped
from matryo.core.terminal import can_draw

Cell = str | tuple[str, str]
"""A text of one line or several; or a text and its style, such as `green`.

A style never says what the text does not.
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        head: its name.
        is_number: align its cells to the right.
        is_optional: leave the column out where the terminal is too narrow for all of them; the
            last such column goes first.
        is_whole: never break its cells, as long as other columns can be.
    """

    head: str
    is_number: bool = False
    is_optional: bool = False
    is_whole: bool = False


def draws_tables() -> bool:
    """Whether standard output is a terminal that shows tables."""
    return can_draw(sys.stdout)


def draw_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Draw a table on standard output, as wide as the terminal at most."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from matryo.core.drawing import console

    out = console(sys.stdout)
    cells = [list(map(_text_and_style, row)) for row in rows]
    kept = list(range(len(columns)))

    def drawn() -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            collapse_padding=True,
            header_style="bold",
        )
        for column in (columns[at] for at in kept):
            justify = "right" if column.is_number else "left"
            table.add_column(column.head, justify=justify, overflow="fold", no_wrap=column.is_whole)
        for row in cells:
            table.add_row(*(Text(*row[at]) for at in kept))
        return table

    table = drawn()
    while optional := [at for at in kept if columns[at].is_optional]:
        if Measurement.get(out, out.options.update(width=1 << 16), table).maximum <= out.width:
            break
        kept.remove(optional[-1])
        table = drawn()
    out.print(table)


def _text_and_style(cell: Cell) -> tuple[str, str]:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return "\n".join(map(escaped, text.split("\n"))), style
