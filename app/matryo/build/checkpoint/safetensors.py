"""Checkpoints in safetensors: tensors of floats, mapped and read by rows, and of integers.

The library checks the header against the file's size before anything is allocated.
Not covered: a checkpoint split over several files (no model here has one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from matryo.build.checkpoint.base import Blocks, FloatArray
from matryo.build.limits import SAFETENSORS_MAX_HEADER
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import refusing

_DTYPES = ("F32", "F16", "BF16", "F64")
_INTEGERS = ("I64", "I32")


class SafetensorsCheckpoint:
    """A `.safetensors` file.

    Args:
        path: the file.

    Raises:
        CheckpointMismatch: it is not safetensors, or its header and its size disagree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with refusing(self._damaged):
            _check_header(path)
            self._file: Any = cast("Any", safe_open(str(path), framework="numpy"))
            self.names = frozenset(cast("list[str]", self._file.keys()))

    def _damaged(self, reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(
            f"{self.path} is not a whole safetensors file: {reason}. Fetch it again."
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str, rows: slice | None = None) -> FloatArray:
        """One tensor, or some rows of its first axis, as float32.

        Raises:
            CheckpointMismatch: the tensor's dtype is none of F32, F16, BF16, F64, or a value
                is not finite as float32.
        """
        view = self._file.get_slice(name)
        if (dtype := view.get_dtype()) not in _DTYPES:
            raise CheckpointMismatch(
                f"{self.path}: tensor '{name}' is {dtype}; weights must be one of {_DTYPES}"
            )
        with refusing(self._damaged), np.errstate(over="ignore"):  # the next line refuses infinity
            array = np.ascontiguousarray(view[rows] if rows else view[:], dtype=np.float32)
        if not np.isfinite(array).all():
            raise CheckpointMismatch(f"{self.path}: tensor '{name}' holds NaN or infinity")
        return array

    def indices(self, name: str) -> NDArray[np.int64]:
        """A whole tensor of integers.

        Raises:
            CheckpointMismatch: the tensor's dtype is neither I64 nor I32.
        """
        view = self._file.get_slice(name)
        if (dtype := view.get_dtype()) not in _INTEGERS:
            raise CheckpointMismatch(
                f"{self.path}: tensor '{name}' is {dtype}; row numbers must be one of {_INTEGERS}"
            )
        with refusing(self._damaged):
            return np.ascontiguousarray(view[:], dtype=np.int64)

    def blocks(self, name: str, rows: slice, bits: int) -> Blocks | None:  # noqa: ARG002
        """None: these files hold plain floats."""
        return None

    def close(self) -> None:
        """Give the mapping back."""
        self._file = None


def _check_header(path: Path) -> None:
    """Refuse a header that is larger than the file, or than any real one.

    Raises:
        ValueError: it is.
    """
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
    most = min(SAFETENSORS_MAX_HEADER, max(path.stat().st_size - 8, 0))
    if n_bytes > most:
        raise ValueError(f"its header has {n_bytes:,} bytes; at most {most:,} are possible")
