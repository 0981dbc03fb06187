"""The package's reader of GGUF, with a bound on everything that a damaged or hostile file asks for.

The package knows the container and every block type. It makes an object for each string of an
array, trusts counts and sizes, and multiplies them with 64 bits. Here an array is one view of the
mapped file, and sizes are compared with the file's size before anything is made of them.

Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any, cast

import gguf
import numpy as np

from matryo.build.limits import (
    GGUF_MAX_AXES,
    GGUF_MAX_ENTRIES,
    GGUF_MAX_ITEMS,
    GGUF_MAX_NAME_BYTES,
)


class BoundedReader(gguf.GGUFReader):
    """A mapped GGUF file: its metadata as views of the file, and its tensors.

    Raises:
        Exception: of many kinds, if the file is not a whole GGUF file.
    """

    _n_strings = 0

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:  # noqa: ANN401
        n_bytes = np.dtype(dtype).itemsize * int(count)
        if offset < 0 or offset + n_bytes > len(self.data):
            raise ValueError(
                f"it asks for {n_bytes:,} bytes at {offset:,}, but has {len(self.data):,}"
            )
        return super()._get(offset, dtype, int(count), override_order)

    def _get_str(self, offset: int) -> Any:  # noqa: ANN401
        n_bytes = int(self._get(offset, np.uint64)[0])
        if n_bytes > GGUF_MAX_NAME_BYTES:
            raise ValueError(
                f"a name has {n_bytes:,} bytes; at most {GGUF_MAX_NAME_BYTES:,} are allowed"
            )
        return super()._get_str(offset)

    def _build_fields(self, offs: int, count: Any) -> int:  # noqa: ANN401
        if int(count) > GGUF_MAX_ENTRIES:
            raise ValueError(f"{int(count):,} keys; at most {GGUF_MAX_ENTRIES:,} make sense")
        return super()._build_fields(offs, int(count))

    def _build_tensor_info(self, offs: int, count: Any) -> Any:  # noqa: ANN401
        if int(count) > GGUF_MAX_ENTRIES:
            raise ValueError(f"{int(count):,} tensors; at most {GGUF_MAX_ENTRIES:,} make sense")
        return super()._build_tensor_info(offs, int(count))

    def _get_field_parts(self, orig_offs: int, raw_type: Any) -> Any:  # noqa: ANN401
        """Bytes, parts, indexes of the values among the parts, and types of one value.

        A string is one view of its bytes. An array of numbers is one view of its numbers. An array
        of strings is one view of the strings and of the length before each of them.
        """
        kind = gguf.GGUFValueType(int(raw_type))
        if kind == gguf.GGUFValueType.STRING:
            length = self._get(orig_offs, np.uint64)
            content = self._get(orig_offs + 8, np.uint8, length[0])
            return 8 + len(content), [length, content], [1], [kind]
        if kind != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, int(raw_type))
        of = self._get(orig_offs, np.uint32)
        length = self._get(orig_offs + 4, np.uint64)
        n_items, item = int(length[0]), gguf.GGUFValueType(int(of[0]))
        start = orig_offs + 12
        if item == gguf.GGUFValueType.STRING:
            values = self._get(start, np.uint8, self._strings_end(start, n_items) - start)
        elif dtype := self.gguf_scalar_to_np.get(item):
            values = self._get(start, dtype, n_items)
        else:
            raise ValueError(f"an array of {n_items:,} {item.name}, which no model has")
        return 12 + int(values.nbytes), [of, length, values], [2], [kind, item]

    def _strings_end(self, start: int, n_items: int) -> int:
        """Offset behind the last of `n_items` strings."""
        self._n_strings += n_items
        if self._n_strings > GGUF_MAX_ITEMS:
            raise ValueError(f"{self._n_strings:,} strings; at most {GGUF_MAX_ITEMS:,} make sense")
        view, form = memoryview(cast("Any", self.data)), self.length_format
        for _ in range(n_items):
            start += 8 + struct.unpack_from(form, view, start)[0]
        return start

    @property
    def length_format(self) -> str:
        """Format of the length before a string, for `struct`."""
        return "<Q" if self.endianess == gguf.GGUFEndian.LITTLE else ">Q"

    def _build_tensors(self, start_offs: int, fields: Any) -> None:  # noqa: ANN401
        """Check shape and bytes of each tensor with exact numbers, and then make the tensors."""
        spans: list[tuple[int, int, str]] = []
        for field in fields:
            _, _, n_axes, dims, kind, offset = field.parts
            if not 1 <= int(n_axes[0]) <= GGUF_MAX_AXES:
                raise ValueError(f"tensor '{field.name}' has {int(n_axes[0]):,} axes, not 1 to 4")
            shape = [int(size) for size in dims]
            block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind[0]))]
            if shape[0] % block:
                raise ValueError(
                    f"rows of tensor '{field.name}' have {shape[0]:,} values in blocks of {block}"
                )
            begin = int(start_offs) + int(offset[0])
            end = begin + math.prod(shape) // block * n_bytes
            if end > len(self.data):
                raise ValueError(
                    f"tensor '{field.name}' ends at {end:,}, but the file at {len(self.data):,}"
                )
            spans.append((begin, end, field.name))
        spans.sort()
        for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
            if begin < end:
                raise ValueError(f"tensors '{one}' and '{other}' overlap")
        super()._build_tensors(start_offs, fields)
