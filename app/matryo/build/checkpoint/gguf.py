"""Checkpoints in GGUF, llama.cpp's format: weights in floats or in blocks, mapped.

Tensors are dequantised as they are read, a few thousand rows at a time. The package `gguf`
knows the container and every block type; what is added here is a bound on everything a
damaged or hostile header may ask for.

Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint.base import BLOCK_SIZE, Blocks, FloatArray
from matryo.build.limits import GGUF_MAX_ENTRIES, GGUF_MAX_STRINGS
from matryo.core.errors import CheckpointMismatch

_FAULTS = (
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    TypeError,
    AttributeError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    OSError,
    struct.error,
)

_Q8_0, _Q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
_SCALE_BYTES = 2  # a block begins with its scale, float16


class _BoundedReader(gguf.GGUFReader):
    """The library's reader; nothing is read past the file's end, arrays of numbers in one piece."""

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:  # noqa: ANN401
        n_bytes = np.dtype(dtype).itemsize * int(count)
        if offset < 0 or offset + n_bytes > len(self.data):
            raise ValueError(
                f"it asks for {n_bytes:,} bytes at {offset:,}, but has {len(self.data):,}"
            )
        return super()._get(offset, dtype, int(count), override_order)

    def _build_fields(self, offs: int, count: Any) -> int:  # noqa: ANN401
        if int(count) > GGUF_MAX_ENTRIES:
            raise ValueError(f"{int(count):,} keys; at most {GGUF_MAX_ENTRIES:,} make sense")
        return super()._build_fields(offs, int(count))

    def _build_tensor_info(self, offs: int, count: Any) -> Any:  # noqa: ANN401
        if int(count) > GGUF_MAX_ENTRIES:
            raise ValueError(f"{int(count):,} tensors; at most {GGUF_MAX_ENTRIES:,} make sense")
        return super()._build_tensor_info(offs, int(count))

    def _get_field_parts(self, orig_offs: int, raw_type: Any) -> Any:  # noqa: ANN401
        if int(raw_type) != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, int(raw_type))
        of = self._get(orig_offs, np.uint32)
        length = self._get(orig_offs + 4, np.uint64)
        n_items, kind = int(length[0]), gguf.GGUFValueType(int(of[0]))
        if kind == gguf.GGUFValueType.STRING and n_items <= GGUF_MAX_STRINGS:
            return super()._get_field_parts(orig_offs, int(raw_type))
        dtype = self.gguf_scalar_to_np.get(kind)
        if dtype is None:
            raise ValueError(f"an array of {n_items:,} {kind.name}, which no model has")
        values = self._get(orig_offs + 12, dtype, n_items)
        types = [gguf.GGUFValueType.ARRAY, kind]
        return 12 + int(values.nbytes), [of, length, values], [2], types


class GgufCheckpoint:
    """A `.gguf` file.

    Args:
        path: the file.

    Raises:
        CheckpointMismatch: it is not GGUF, damaged, or asks for more than a model can need.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader: _BoundedReader | None = _BoundedReader(path)
        except _FAULTS as exc:
            reason = f"{exc}" or type(exc).__name__
            raise CheckpointMismatch(
                f"{path} is not a whole GGUF file: {reason}. Fetch it again."
            ) from exc
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if scalars := [name for name, tensor in self._tensors.items() if not len(tensor.shape)]:
            raise CheckpointMismatch(
                f"{path} is not a whole GGUF file: tensor '{scalars[0]}' has no axes. "
                "Fetch it again."
            )
        self.names = frozenset(self._tensors)

    def metadata(self, key: str) -> Any:  # noqa: ANN401
        """The value of a metadata key: a number, a string or a list; None if it is not there.

        Raises:
            CheckpointMismatch: a string is not UTF-8.
        """
        assert self._reader, "closed"
        field = self._reader.get_field(key)
        try:
            return field.contents() if field else None
        except _FAULTS as exc:
            raise CheckpointMismatch(f"{self.path}: metadata '{key}': {exc}") from exc

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, outermost axis first, without reading it."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str, rows: slice | None = None) -> FloatArray:
        """One tensor, or some rows of its first axis, dequantised to float32.

        Raises:
            CheckpointMismatch: a type that cannot be dequantised, or values that are not finite.
        """
        tensor = self._tensors[name]
        data = np.ascontiguousarray(cast("Any", tensor.data)[rows or slice(None)])
        try:
            floats = gguf.dequantize(data, tensor.tensor_type)
        except _FAULTS as exc:
            raise CheckpointMismatch(
                f"{self.path}: tensor '{name}' is {tensor.tensor_type.name}, which cannot be "
                f"read as numbers: {exc}"
            ) from exc
        array = np.array(floats, np.float32, order="C")
        # A damaged scale of a block is more likely than not infinite or NaN, or silently huge.
        if not math.isfinite(float(np.abs(array).max(initial=0))):
            raise CheckpointMismatch(f"{self.path}: tensor '{name}' holds NaN or infinity")
        return array

    def blocks(self, name: str, rows: slice, bits: int) -> Blocks | None:
        """Rows of a Q8_0 tensor (bits 8) or a Q4_0 tensor (bits 4), as they are stored."""
        tensor = self._tensors[name]
        kind = {8: _Q8_0, 4: _Q4_0}.get(bits)
        if tensor.tensor_type != kind:
            return None
        data: NDArray[np.uint8] = np.asarray(cast("Any", tensor.data)[rows])
        data = data.reshape(-1, data.shape[-1])  # (out, bytes); of a stack too
        raw = data.reshape(len(data), -1, _SCALE_BYTES + BLOCK_SIZE * bits // 8)
        scales = raw[..., :_SCALE_BYTES].copy().view(np.float16)[..., 0].astype(np.float32)
        if not np.isfinite(scales).all():
            raise CheckpointMismatch(f"{self.path}: tensor '{name}' holds NaN or infinity")
        packed = raw[..., _SCALE_BYTES:]
        if kind == _Q8_0:
            values = np.bitwise_xor(packed, 0x80, dtype=np.uint8)  # int8 to uint8 around 128
        else:  # values 0 to 15 in the low halves, 16 to 31 in the high ones
            values = np.concatenate([packed & 0x0F, packed >> 4], axis=-1)
        values = np.ascontiguousarray(values, np.uint8).reshape(len(data), -1)
        return Blocks(values, scales)

    def close(self) -> None:
        """Give the mapping back."""
        self._reader = None
        self._tensors = {}
