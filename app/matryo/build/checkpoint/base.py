"""What a build needs of a checkpoint, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

BLOCK_SIZE = 32
"""Weights that share a scale, along a row: of GGUF's Q8_0 and Q4_0, and of our own q8 and q4."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix `(out, in)` in blocks along its rows: weight = (value - zero point) * scale.

    The zero point is the middle of the range: 128 of 8 bits, 8 of 4.

    Attributes:
        values: `(out, in)` uint8, one value each, also where it has 4 bits.
        scales: `(out, in / BLOCK_SIZE)` float32.
    """

    values: NDArray[np.uint8]
    scales: FloatArray


class Checkpoint(Protocol):
    """Named float tensors that stay on disk until asked for."""

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's name, as the file spells it."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        ...

    def read(self, name: str, rows: slice | None = None) -> FloatArray:
        """One tensor, or some rows of its first axis.

        Returns:
            float32, C-contiguous, owned by the caller.
        """
        ...

    def indices(self, name: str) -> NDArray[np.int64]:
        """A whole tensor of integers, such as a table of row numbers.

        Raises:
            CheckpointMismatch: the tensor holds no integers.
        """
        ...

    def blocks(self, name: str, rows: slice, bits: int) -> Blocks | None:
        """Some rows of a matrix as the file's own blocks, if it is stored in such."""
        ...

    def close(self) -> None:
        """Give the mapping back; nothing can be read after."""
        ...
