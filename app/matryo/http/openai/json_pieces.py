"""Parses a large JSON body in pieces, so that no call holds the interpreter for long.

orjson holds Python's interpreter lock until a whole document is parsed: 70 ms for 16 MB. Here each
long string is decoded by itself, and the rest of the body is parsed with a short string in place of
each long one. Values, errors and positions in errors are those of `orjson.loads(body)`.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from matryo.http.openai.tally import LONG_BYTES

_SLICE = 1 << 20
_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character


class NotJson(ValueError):
    """A body that is not JSON; the message is orjson's, with the position in the body."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong at an offset of the body."""

    offset: int
    message: str


def loads(
    body: bytes | bytearray, strings: Sequence[tuple[int, int]], long_bytes: int = LONG_BYTES
) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The value of a body.

    Args:
        body: JSON in UTF-8.
        strings: the long strings, as offsets of their first byte and of the quote at the end.
        long_bytes: strings that have more characters than this are put in after parsing.

    Raises:
        NotJson: the body is not JSON.
    """
    mark = secrets.token_hex(8)  # no caller can guess a string that stands for another
    whole: dict[str, str] = {}
    cuts = _Cuts()
    fault: _Fault | None = None
    for start, end in strings:
        stand_in = f"{mark}{start}"
        if fault is None:
            try:
                text: str = orjson.loads(b'"' + body[start:end] + b'"')
            except orjson.JSONDecodeError as exc:
                fault = _Fault(start - 1 + _offset(exc), exc.msg)
            else:
                # A string whose escapes made it long may equal a short one, as keys of an object.
                if len(text) > long_bytes:
                    whole[stand_in] = text
                else:
                    stand_in = orjson.dumps(text)[1:-1].decode()
        cuts.add(body, start, end, stand_in.encode())
    try:
        data: Any = orjson.loads(cuts.rest(body))
    except orjson.JSONDecodeError as exc:
        found = _Fault(cuts.in_body(_offset(exc)), exc.msg)
        fault = min(fault or found, found, key=lambda one: one.offset)
    else:
        if fault is None:
            return _put_in(data, whole)
    raise NotJson(_described(body, fault)) from None


class _Cuts:
    """A body with other bytes in place of some of its strings."""

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._end = 0  # of the last string, in the body
        self._length = 0  # of the pieces
        # Offsets after each cut, in the shortened body and in the body.
        self._short: list[int] = [0]
        self._long: list[int] = [0]

    def add(self, body: bytes | bytearray, start: int, end: int, stand_in: bytes) -> None:
        """Put `stand_in` in place of the bytes from `start` to `end`, which follow the last cut."""
        self._pieces += (body[self._end : start], stand_in)
        self._length += start - self._end + len(stand_in)
        self._end = end
        self._short.append(self._length)
        self._long.append(end)

    def rest(self, body: bytes | bytearray) -> bytes:
        """The shortened body."""
        return b"".join((*self._pieces, body[self._end :]))

    def in_body(self, offset: int) -> int:
        """The offset in the body of a byte of the shortened body that is in no stand-in."""
        number = bisect_right(self._short, offset) - 1
        return self._long[number] + offset - self._short[number]


def _put_in(data: Any, whole: dict[str, str]) -> Any:  # noqa: ANN401 - whatever JSON holds
    """`data` with the whole strings in place of their stand-ins."""
    if not isinstance(data, (dict, list)):
        return whole.get(data, data)
    found: list[Any] = [cast("Any", data)]
    while found:
        container: Any = found.pop()
        if isinstance(container, dict):
            values = cast("dict[str, Any]", container)
            items = list(values.items())
            values.clear()
            for key, value in items:
                values[whole.get(key, key)] = whole.get(value, value) if _is_str(value) else value
            found += [value for _, value in items if isinstance(value, (dict, list))]
        elif set(map(type, container)) - {int, float}:
            container[:] = [whole.get(item, item) if _is_str(item) else item for item in container]
            found += [item for item in container if isinstance(item, (dict, list))]
    return cast("Any", data)


def _is_str(value: object) -> bool:
    return type(value) is str


def _offset(exc: orjson.JSONDecodeError) -> int:
    """The byte offset of an error, whose own position counts characters."""
    return len(exc.doc[: exc.pos].encode())


def _described(body: bytes | bytearray, fault: _Fault) -> str:
    """The message of an error as `json.JSONDecodeError` words it."""
    line_start = body.rfind(b"\n", 0, fault.offset) + 1
    n_before = _characters(body, 0, line_start)
    column = _characters(body, line_start, fault.offset)
    line = body.count(b"\n", 0, fault.offset) + 1
    return f"{fault.message}: line {line} column {column + 1} (char {n_before + column})"


def _characters(body: bytes | bytearray, start: int, end: int) -> int:
    """Characters that begin between two offsets."""
    return sum(
        len(body[at : min(at + _SLICE, end)].translate(None, _CONTINUATION))
        for at in range(start, end, _SLICE)
    )
