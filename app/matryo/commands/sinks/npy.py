"""Vectors as one numpy array."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from matryo.commands.sinks.block import LITTLE, Block, Head, numbers


class Npy:
    """One `(n, D)` array; numpy pads the header, which is written again with `n`."""

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self._file = file
        self._head = head
        if not file.tell():
            self._write_header(0)

    def write(self, block: Block) -> None:
        """Append the vectors of a block."""
        self._file.write(np.ascontiguousarray(numbers(block.vectors, self._head.dtype)).data)

    def finish(self, n_vectors: int, whole: BinaryIO | None) -> None:
        """Write the number of vectors into the header."""
        del whole
        self._file.seek(0)
        self._write_header(n_vectors)

    def _write_header(self, n_vectors: int) -> None:
        shape = (n_vectors, self._head.dimensions)
        header = {"descr": LITTLE[self._head.dtype], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
