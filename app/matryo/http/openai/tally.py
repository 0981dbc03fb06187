"""Counts what a JSON body holds while the body arrives, and refuses too much of anything.

The counts cost a few operations on bytes for each piece. No Python object is made for a value of
the body. A body that is not JSON may be counted wrongly: its caller then gets the error of a bound,
or the parser's. Bodies of up to `SMALL_BYTES` are not counted, because they can hold little.
"""

from __future__ import annotations

from matryo.core.errors import InvalidRequest, TooManyTexts, TooManyTokens
from matryo.service.limits import RequestLimits

SMALL_BYTES = 1 << 16
"""Bodies of up to so many bytes are parsed in one go, on the event loop, without being counted."""

LONG_BYTES = 256
"""Strings of more raw bytes than this are decoded one by one, apart from the rest of a body."""

MAX_STRING_BYTES = 1 << 21
"""Raw bytes of one string. A text of 2 MiB has hundreds of pages, and no model reads them all."""

_MAX_KEYS = 4096  # of the body and of all objects in it
_STEP = 1 << 14  # bytes that are counted in one go
_SLACK = 4096  # strings, arrays and numbers that fields beside `input` may have
_MIN_OUTSIDE_BYTES = 1 << 23
_BYTES_PER_ID = 32

# What the parser's objects take, at most: a number in a list, as a float and as an integer; a
# string, an array or an object, beside what it holds.
_NUMBER_BYTES, _OBJECT_BYTES = 72, 192
_WIDEST = 4  # bytes of a character in a string that is not plain ASCII


class Tally:
    """The counts of one body.

    Args:
        limits: of a request.
        small_bytes: see `SMALL_BYTES`.
        long_bytes: see `LONG_BYTES`.
    """

    def __init__(
        self, limits: RequestLimits, small_bytes: int = SMALL_BYTES, long_bytes: int = LONG_BYTES
    ) -> None:
        self._limits = limits
        self._small_bytes = small_bytes
        self._step = min(_STEP, small_bytes)
        self._long_bytes = long_bytes
        self._held = bytearray()  # what arrived and is not counted yet
        self._at = 0  # offset in the body of the first byte that is not counted
        self._start: int | None = None  # offset of the first byte of the string that is open
        self._wide = False  # whether the open string is not plain ASCII
        self._commas = self._keys = self._opened = self._quotes = 0
        self._outside_bytes = self._string_bytes = 0
        self._long: list[tuple[int, int]] = []

    def feed(self, piece: bytes | bytearray) -> None:
        """Count the next piece of the body.

        Raises:
            InvalidRequest: too many fields, too long a string, or too much outside of strings.
            TooManyTexts: more strings, or more arrays, than a request may have.
            TooManyTokens: more numbers than a request may have.
        """
        for start in range(0, len(piece), self._step):
            self._held += piece[start : start + self._step]
            if self._at or len(self._held) > self._small_bytes:
                while len(self._held) > self._step:
                    self._count(self._take())

    def finish(self) -> list[tuple[int, int]]:
        """The long strings of the body, as offsets of their first byte and of the quote at the end.

        Raises:
            MatryoError: see `feed`.
        """
        if self._at or len(self._held) > self._small_bytes:
            while self._held:
                self._count(self._take())
        return self._long

    @property
    def parsed_bytes(self) -> int:
        """Bytes that the parsed body takes at most; known after `finish`."""
        n_objects = self._strings + self._opened + self._keys
        return _NUMBER_BYTES * self._commas + _OBJECT_BYTES * n_objects + self._string_bytes

    def _take(self) -> bytes:
        """The next bytes to count, with the whole of an escape that begins at their end."""
        taken = bytes(self._held[: self._step])
        n_backslashes = len(taken) - len(taken.rstrip(b"\\"))
        if n_backslashes % 2:
            taken += self._held[self._step : self._step + 1]
        del self._held[: len(taken)]
        return taken

    def _count(self, piece: bytes) -> None:
        plain = piece.replace(b"\\\\", b"..").replace(b'\\"', b"..")
        self._quotes += plain.count(b'"')
        self._split(plain, wide=b"\\u" in plain or not plain.isascii())
        self._at += len(piece)
        self._check()

    @property
    def _strings(self) -> int:
        return self._quotes // 2

    def _split(self, plain: bytes, *, wide: bool) -> None:
        """Count what is inside and outside of strings; escaped quotes were taken out of `plain`."""
        outside: list[bytes] = []
        at = self._at
        for number, part in enumerate(plain.split(b'"')):
            if number and self._start is None:
                self._start, self._wide = at, False
            elif number:
                self._close(at - 1)
            if self._start is None:
                outside.append(part)
            else:
                self._wide |= wide
            at += len(part) + 1
        between = b"".join(outside)
        self._outside_bytes += len(between)
        self._commas += between.count(b",")
        self._keys += between.count(b":")
        self._opened += between.count(b"[") + between.count(b"{")
        if self._start is not None:
            self._check_string(self._at + len(plain) - self._start)

    def _close(self, end: int) -> None:
        """End the string that is open; `end` is the offset of its quote."""
        start, self._start = self._start or 0, None
        self._check_string(end - start)
        self._string_bytes += (end - start) * (_WIDEST if self._wide else 1)
        if end - start > self._long_bytes:
            self._long.append((start, end))

    def _check_string(self, n_bytes: int) -> None:
        if n_bytes > MAX_STRING_BYTES:
            raise InvalidRequest(
                f"Invalid body: string too long. Expected a string with maximum length "
                f"{MAX_STRING_BYTES} bytes, but got a string of at least {n_bytes} bytes; send its "
                "beginning, or split the string.",
                code="string_above_max_length",
            )

    def _check(self) -> None:
        """Hold the counts so far against the bounds."""
        if self._keys > _MAX_KEYS:
            raise InvalidRequest(
                f"The body has at least {self._keys} fields, those of nested objects included; at "
                f"most {_MAX_KEYS} are read. Leave out fields that are not OpenAI's.",
                code="unsupported_parameter",
            )
        self._check_texts(max(self._strings - self._keys, self._opened))
        most_tokens = self._limits.max_tokens
        if most_tokens is not None:
            n_tokens = self._commas - self._strings - self._opened
            if n_tokens > most_tokens + _SLACK:
                raise TooManyTokens(n_tokens=n_tokens, max_tokens=most_tokens, exact=False)
            most = max(_MIN_OUTSIDE_BYTES, _BYTES_PER_ID * most_tokens)
            if self._outside_bytes > most:
                raise InvalidRequest(
                    f"The body has at least {self._outside_bytes} bytes outside of strings; at "
                    f"most {most} are read. Send shorter numbers and less white space.",
                    code="request_too_large",
                )

    def _check_texts(self, n_texts: int) -> None:
        most = self._limits.max_texts
        # A gateway may send a copy of the texts in a field of its own.
        if most is not None and n_texts > 2 * most + _SLACK:
            raise TooManyTexts(n_texts=n_texts, max_texts=most, exact=False)
