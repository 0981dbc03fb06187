"""What a build needs of a checkpoint, whatever its format."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


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
