"""Tensor names as data: what a graph calls a tensor, and what a file calls it.

An architecture lists its spellings, one table for each family of files. A table maps the
architecture's own names to the file's; `{i}` stands for a layer's number. A tensor that
the file keeps as part of a larger one (q, k and v in one `Wqkv`) is a `Part` of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.core.errors import CheckpointMismatch
from app.graph.checkpoint.base import Checkpoint, FloatArray

_CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Part:
    """Equal part number `index` of `of`, along the first axis of the tensor `name`."""

    name: str
    index: int
    of: int


Spelling = Mapping[str, str | Part]


class Weights:
    """A checkpoint under an architecture's own names.

    Args:
        checkpoint: the file.
        spellings: tables to choose from; the one with the fewest names missing is taken.
        ignored: regular expressions of names in the file that may go unused.
        num_layers: how many values `{i}` takes.

    Raises:
        CheckpointMismatch: no table fits, a tensor is missing, or one would go unused:
            a bias that the config does not know would silently give other vectors.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spellings: Sequence[Spelling],
        *,
        ignored: Sequence[str] = (),
        num_layers: int,
    ) -> None:
        self._checkpoint = checkpoint
        tables = [_expand(spelling, num_layers) for spelling in spellings]
        self._sources = min(
            tables,
            key=lambda table: sum(p.name not in checkpoint.names for p in table.values()),
        )
        used = {part.name for part in self._sources.values()}
        if not used & checkpoint.names:
            raise CheckpointMismatch(
                f"the checkpoint has none of the tensors this architecture needs, such as "
                f"{_some(sorted(used), 2)}, but {_some(sorted(checkpoint.names), 2)}"
            )
        if missing := sorted(used - checkpoint.names):
            raise CheckpointMismatch(f"the checkpoint lacks {_some(missing)}")
        unused = checkpoint.names - used
        if strange := sorted(n for n in unused if not any(re.fullmatch(p, n) for p in ignored)):
            raise CheckpointMismatch(
                f"the checkpoint has {_some(strange)}, which this architecture's config has no "
                "place for; compare [architecture] in model.toml with the model's config.json"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor, without reading it."""
        part = self._sources[name]
        rows, *rest = self._checkpoint.shape(part.name)
        return (rows // part.of, *rest)

    def read(self, name: str, shape: tuple[int, ...], rows: slice | None = None) -> FloatArray:
        """The tensor as float32, or some of its rows.

        Args:
            name: the architecture's name of it.
            shape: what the config makes of it, all rows counted.
            rows: which rows; None for all.

        Raises:
            CheckpointMismatch: the file has it in another shape.
        """
        if (found := self.shape(name)) != shape:
            raise CheckpointMismatch(
                f"tensor '{self._sources[name].name}' gives '{name}' the shape {found}, "
                f"but the config says {shape}; compare [architecture] in model.toml with the "
                "model's config.json"
            )
        part = self._sources[name]
        first = part.index * shape[0]
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        return self._checkpoint.read(part.name, slice(first + start, first + stop))

    def read_rows(self, name: str, shape: tuple[int, ...]) -> Iterator[FloatArray]:
        """The tensor in pieces of a few thousand rows, for tables too large to hold."""
        for start in range(0, shape[0], _CHUNK_ROWS):
            yield self.read(name, shape, slice(start, start + _CHUNK_ROWS))

    def lookup(self, name: str, shape: tuple[int, ...], rows: Sequence[int]) -> FloatArray:
        """Single rows of the tensor, in the order asked; float32 `(len(rows), ...)`."""
        return np.concatenate([self.read(name, shape, slice(row, row + 1)) for row in rows])


def _expand(spelling: Spelling, num_layers: int) -> dict[str, Part]:
    """The table with a line for every layer, and every source as a part."""
    table: dict[str, Part] = {}
    for name, source in spelling.items():
        part = source if isinstance(source, Part) else Part(source, 0, 1)
        for i in range(num_layers if "{i}" in name else 1):
            full = Part(part.name.replace("{i}", str(i)), part.index, part.of)
            table[name.replace("{i}", str(i))] = full
    return table


def _some(names: Sequence[str], most: int = 5) -> str:
    """A few names for a message; a checkpoint may have hundreds."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more tensors"
