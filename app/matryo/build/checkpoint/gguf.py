"""Checkpoints in GGUF, llama.cpp's format: weights in floats or in blocks, mapped.

Tensors are dequantised as they are read, a few thousand rows at a time. `gguf_reader` bounds what a
file may ask for.

Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint.base import BLOCK_SIZE, Blocks, FloatArray
from matryo.build.checkpoint.gguf_reader import BoundedReader
from matryo.build.limits import GGUF_MAX_ITEMS, GGUF_MAX_TEXT_BYTES
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import refusing

_Q8_0, _Q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
_SCALE_BYTES = 2  # a block begins with its scale, float16


_KIND = gguf.GGUFValueType
_INTEGERS = (
    *(_KIND.UINT8, _KIND.INT8, _KIND.UINT16, _KIND.INT16),
    *(_KIND.UINT32, _KIND.INT32, _KIND.UINT64, _KIND.INT64),
)
_FLOATS = (_KIND.FLOAT32, _KIND.FLOAT64)


class GgufCheckpoint:
    """A `.gguf` file.

    Args:
        path: the file.

    Raises:
        CheckpointMismatch: it is not GGUF, damaged, or asks for more than a model can need.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with refusing(self._damaged):
            self._reader: BoundedReader | None = BoundedReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.names = frozenset(self._tensors)

    def _damaged(self, reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(
            f"{self.path} is not a whole GGUF file: {reason}. Fetch it again."
        )

    # --- metadata

    def text(self, key: str) -> str | None:
        """The string of a metadata key; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no string, too long, or not UTF-8.
        """
        content = self._value(key, "a string", (_KIND.STRING,))
        if content is None:
            return None
        if len(content) > GGUF_MAX_TEXT_BYTES:
            raise self._odd(key, f"has {len(content):,} bytes, more than {GGUF_MAX_TEXT_BYTES:,}")
        with refusing(lambda reason: self._odd(key, f"is not UTF-8: {reason}")):
            return bytes(content).decode()

    def integer(self, key: str) -> int | None:
        """The integer of a metadata key; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no integer.
        """
        found = self._value(key, "an integer", _INTEGERS)
        return None if found is None else int(found[0])

    def number(self, key: str) -> float | None:
        """The float of a metadata key; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no float.
        """
        found = self._value(key, "a float", _FLOATS)
        return None if found is None else float(found[0])

    def flag(self, key: str) -> bool | None:
        """The boolean of a metadata key; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no boolean.
        """
        found = self._value(key, "a boolean", (_KIND.BOOL,))
        return None if found is None else bool(found[0])

    def texts(self, key: str) -> list[str] | None:
        """The strings of a metadata key; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no array of strings, or a string is not UTF-8.
        """
        content = self._value(key, "an array of strings", (_KIND.STRING,), array=True)
        if content is None:
            return None
        assert self._reader, "closed"
        form, view, at = self._reader.length_format, memoryview(content), 0
        strings: list[str] = []
        with refusing(lambda reason: self._odd(key, f"is not UTF-8: {reason}")):
            while at < len(view):
                end = at + 8 + int(struct.unpack_from(form, view, at)[0])
                strings.append(str(view[at + 8 : end], "utf-8"))
                at = end
        return strings

    def integers(self, key: str, *, most: int = GGUF_MAX_ITEMS) -> NDArray[np.int64] | None:
        """The integers of a metadata key, at most `most`; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no array of integers, or has too many.
        """
        found = self._value(key, "an array of integers", _INTEGERS, array=True, most=most)
        return None if found is None else found.astype(np.int64)

    def floats(self, key: str) -> NDArray[np.float64] | None:
        """The numbers of a metadata key, all finite; None if there is no such key.

        Raises:
            CheckpointMismatch: the value is no array of floats, has too many, or one that is not
                finite.
        """
        found = self._value(key, "an array of floats", _FLOATS, array=True)
        if found is None:
            return None
        if not np.isfinite(found).all():
            raise self._odd(key, "holds NaN or infinity")
        return found.astype(np.float64)

    def _value(
        self,
        key: str,
        expected: str,
        kinds: Sequence[gguf.GGUFValueType],
        *,
        array: bool = False,
        most: int = GGUF_MAX_ITEMS,
    ) -> Any:  # noqa: ANN401
        """The view of a value, of one of these kinds or an array of them; None if there is none."""
        assert self._reader, "closed"
        field = self._reader.get_field(key)
        if field is None:
            return None
        *outer, kind = field.types
        if kind not in kinds or outer != ([_KIND.ARRAY] if array else []):
            found = "an array of " * len(outer) + kind.name
            raise self._odd(key, f"is {found}, but must be {expected}")
        view = field.parts[field.data[0]]
        if array and kind != _KIND.STRING and len(view) > most:
            raise self._odd(key, f"has {len(view):,} items; at most {most:,} make sense")
        return view

    def _odd(self, key: str, what: str) -> CheckpointMismatch:
        return CheckpointMismatch(f"{self.path}: metadata '{key}' {what}.")

    # --- tensors

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
        with refusing(
            lambda reason: CheckpointMismatch(
                f"{self.path}: tensor '{name}' is {tensor.tensor_type.name}, which cannot be "
                f"read as numbers: {reason}"
            )
        ):
            floats = gguf.dequantize(data, tensor.tensor_type)
        array = np.array(floats, np.float32, order="C")
        # A damaged scale of a block is more likely than not infinite or NaN, or silently huge.
        if not math.isfinite(float(np.abs(array).max(initial=0))):
            raise CheckpointMismatch(f"{self.path}: tensor '{name}' holds NaN or infinity")
        return array

    def indices(self, name: str) -> NDArray[np.int64]:
        """A tensor of integers, which no GGUF file of a known model has.

        Raises:
            CheckpointMismatch: always.
        """
        raise CheckpointMismatch(
            f"{self.path}: tensor '{name}' must hold row numbers, which are read from safetensors "
            "only. Give the model's safetensors file."
        )

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
