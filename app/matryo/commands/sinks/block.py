"""What sinks write: rows with their vectors, and what is true of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from matryo.commands.sources.item import Item
from matryo.engine.postprocess import FloatArray
from matryo.service.numbers import Matrix, quantize

Dtype = Literal["float32", "float16", "int8"]
LITTLE: dict[Dtype, str] = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
"""numpy's names of the numbers, least significant byte first."""


@dataclass(frozen=True, slots=True)
class Span:
    """One window of a text.

    Attributes:
        chunk: the window's number within its text, from 0.
        start: the index of the window's first character in the text.
        end: the index behind its last character.
    """

    chunk: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """Vectors in order, each with the item that it belongs to.

    Attributes:
        items: for each vector.
        indexes: of the items in the input, from 0.
        vectors: `(n, D)` float32.
        spans: the window of each vector, where a text has a row for each window.
    """

    items: Sequence[Item]
    indexes: Sequence[int]
    vectors: FloatArray
    spans: Sequence[Span] | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What is true of a whole output.

    Attributes:
        dimensions: of every vector.
        dtype: of their numbers.
        facts: name and value of what shaped the vectors, for the schema of a Parquet file.
        keep: columns that are handed through.
        types: Arrow types of those columns, and of `id`; a column without one has strings.
        has_spans: whether each vector has a window.
    """

    dimensions: int
    dtype: Dtype = "float32"
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    keep: tuple[str, ...] = ()
    types: Mapping[str, Any] = field(default_factory=dict[str, Any])
    has_spans: bool = False


class Sink(Protocol):
    """Appends blocks to a file that is written aside, and makes the file whole at the end."""

    def write(self, block: Block) -> None:
        """Append the rows of a block."""
        ...

    def finish(self, n_vectors: int, whole: BinaryIO | None) -> None:
        """Make the file whole; doing so twice gives the same file.

        Args:
            n_vectors: in the file.
            whole: a new file for the result, for sinks of another final format.
        """
        ...


def numbers(vectors: FloatArray, dtype: Dtype) -> Matrix:
    """Unit vectors in the numbers of an output; `int8` is `matryo.service.numbers`' own."""
    if dtype == "int8":
        return quantize(vectors, "int8")
    return vectors.astype(np.dtype(LITTLE[dtype]), copy=False)
