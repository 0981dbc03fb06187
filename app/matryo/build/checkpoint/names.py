"""Tensor names as data: what a graph calls a tensor, and what a file calls it.

An architecture lists its spellings, one table for each family of files, from its own names
to the file's. A tensor that the file keeps as part of a larger one (q, k and v in one
`Wqkv`, an expert in a stack of them) is a `Part` of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matryo.build.checkpoint.base import Blocks, Checkpoint, FloatArray
from matryo.build.limits import READ_ROWS
from matryo.core.errors import CheckpointMismatch


@dataclass(frozen=True, slots=True)
class Part:
    """Equal part number `index` of `of`, along the first axis of the tensor `name`.

    Attributes:
        transposed: the file holds the part as `(in, out)`; we always give `(out, in)`.
    """

    name: str
    index: int = 0
    of: int = 1
    transposed: bool = False


Spelling = Mapping[str, str | Part]


class Weights:
    """A checkpoint under an architecture's own names.

    Args:
        checkpoint: the file.
        spellings: tables to choose from; the one with the fewest names missing is taken.
            The first names everything the architecture has; a later one may lack what its
            family of files never carries.
        ignored: regular expressions of names in the file that may go unused.

    Attributes:
        lacks: own names that this family of files does not carry.

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
    ) -> None:
        self._checkpoint = checkpoint
        tables = [
            {name: part if isinstance(part, Part) else Part(part) for name, part in table.items()}
            for table in spellings
        ]
        self._sources = min(
            tables,
            key=lambda table: sum(p.name not in checkpoint.names for p in table.values()),
        )
        self.lacks = tuple(name for name in tables[0] if name not in self._sources)
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

    def has(self, name: str) -> bool:
        """Whether the architecture has a tensor `name` in this family of files."""
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor as we give it, without reading it."""
        part = self._sources[name]
        rows, *rest = self._checkpoint.shape(part.name) or (1,)
        if rows % part.of:
            raise CheckpointMismatch(
                f"tensor '{part.name}' has {rows} rows, which do not make {part.of} equal parts"
            )
        shape = (rows // part.of, *rest)
        if _stacked(part, shape):
            shape = shape[1:]
        return shape[::-1] if part.transposed else shape

    def read(self, name: str, shape: tuple[int, ...], rows: slice | None = None) -> FloatArray:
        """The tensor as float32, or some of its rows.

        Args:
            name: the architecture's name of it.
            shape: what the config makes of it, all rows counted.
            rows: which rows; None for all.

        Raises:
            CheckpointMismatch: the file has it in another shape.
        """
        self._check(name, shape)
        part = self._sources[name]
        whole = self._checkpoint.shape(part.name)
        if len(whole) < len(shape):  # GGUF drops outer axes of 1
            return self._checkpoint.read(part.name).reshape(shape)[rows or slice(None)]
        n_rows = whole[0] // part.of
        first = part.index * n_rows
        if part.transposed or _stacked(part, (n_rows, *whole[1:])):
            array = self._checkpoint.read(part.name, slice(first, first + n_rows))
            array = array.reshape(array.shape[-2:])
            return (array.T if part.transposed else array)[rows or slice(None)]
        start, stop, _ = (rows or slice(None)).indices(n_rows)
        return self._checkpoint.read(part.name, slice(first + start, first + stop))

    def blocks(self, name: str, shape: tuple[int, int], bits: int) -> Blocks | None:
        """The tensor as the file's own blocks of 32, or None if it is not stored so.

        Args:
            name: the architecture's name of it.
            shape: what the config makes of it, `(out, in)`.
            bits: of a weight, 4 or 8.

        Raises:
            CheckpointMismatch: the file has it in another shape.
        """
        self._check(name, shape)
        part = self._sources[name]
        if part.transposed:
            return None
        whole = self._checkpoint.shape(part.name)
        n_rows = whole[0] // part.of
        rows = slice(part.index * n_rows, (part.index + 1) * n_rows)
        return self._checkpoint.blocks(part.name, rows, bits)

    def read_rows(self, name: str, shape: tuple[int, ...]) -> Iterator[FloatArray]:
        """The tensor in pieces of a few thousand rows, for tables too large to hold."""
        for start in range(0, shape[0], READ_ROWS):
            yield self.read(name, shape, slice(start, start + READ_ROWS))

    def lookup(self, name: str, shape: tuple[int, ...], rows: Sequence[int]) -> FloatArray:
        """Single rows of the tensor, in the order asked; float32 `(len(rows), ...)`."""
        return np.concatenate([self.read(name, shape, slice(row, row + 1)) for row in rows])

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.shape(name)
        if shape not in (found, (1, *found)):
            raise CheckpointMismatch(
                f"tensor '{self._sources[name].name}' gives '{name}' the shape {found}, "
                f"but the config says {shape}; compare [architecture] in model.toml with the "
                "model's config.json"
            )


def _stacked(part: Part, shape: tuple[int, ...]) -> bool:
    """Whether a part is one matrix of a stack, `(1, out, in)`."""
    return part.of > 1 and len(shape) == 3 and shape[0] == 1  # noqa: PLR2004


def _some(names: Sequence[str], most: int = 5) -> str:
    """A few names for a message; a checkpoint may have hundreds."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more tensors"
