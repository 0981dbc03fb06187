"""protobuf's wire format, as far as the library is too generous or too slow.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from matryo.engine.postprocess import FloatArray

_LEN = 2
_LONG = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_VARINT_BYTES = 10


def varint(number: int) -> bytes:
    """A number of at least 0, seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(field: int, content: bytes) -> bytes:
    """A field of bytes, of a message or of packed numbers."""
    return varint(field << 3 | _LEN) + varint(len(content)) + content


def floats(field: int, vector: FloatArray) -> bytes:
    """A field `repeated float` with the very bits of a vector."""
    return delimited(field, vector.astype("<f4", copy=False).tobytes())


def rows(field: int, row_field: int, matrix: FloatArray) -> bytes:
    """A repeated field of messages, each with a row of `(n, D)` in its field `row_field`."""
    n_bytes = 4 * matrix.shape[1]
    head = varint(row_field << 3 | _LEN) + varint(n_bytes)
    head = varint(field << 3 | _LEN) + varint(len(head) + n_bytes) + head
    content = np.empty((len(matrix), len(head) + n_bytes), np.uint8)
    content[:, : len(head)] = np.frombuffer(head, np.uint8)
    content[:, len(head) :] = matrix.astype("<f4", copy=False).view(np.uint8)
    return content.tobytes()


def count_fields(raw: bytes, descriptor: Descriptor, most: int) -> int | None:
    """Number of fields of a message and of the messages in it.

    Each byte of packed 64-bit numbers counts as a field, because it may become eight bytes.

    Args:
        raw: the message.
        descriptor: of the message.
        most: counting stops above this number.

    Returns:
        The number, any number above `most`, or None for bytes that are no message.
    """
    try:
        return _Counter(raw, most).count(0, len(raw), descriptor)
    except (IndexError, ValueError):
        return None


class _Counter:
    def __init__(self, raw: bytes, most: int) -> None:
        self._raw, self._most, self._n = raw, most, 0

    def count(self, at: int, end: int, descriptor: Descriptor | None) -> int:
        """Count the fields between two offsets, and return the number of all fields so far."""
        while at < end and self._n <= self._most:
            self._n += 1
            tag, at = self._varint(at)
            size = 0
            match tag & 7:
                case 0:
                    _, at = self._varint(at)
                case 1:
                    size = 8
                case 5:
                    size = 4
                case 2:
                    size, at = self._varint(at)
                    field = descriptor and descriptor.fields_by_number.get(tag >> 3)
                    if field and field.message_type and at + size <= end:
                        self.count(at, at + size, field.message_type)
                    elif field and field.cpp_type in _LONG:
                        self._n += size
                case kind:
                    raise ValueError(f"wire type {kind}")  # groups are of proto2
            at += size
            if at > end:
                raise ValueError("a field ends behind its message")
        return self._n

    def _varint(self, at: int) -> tuple[int, int]:
        number = 0
        for index in range(_VARINT_BYTES):
            byte = self._raw[at + index]
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:  # noqa: PLR2004 - the last byte
                return number, at + index + 1
        raise ValueError("a varint of more than ten bytes")
