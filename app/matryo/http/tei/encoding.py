"""Vectors, tokens and strings as TEI's JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from matryo.engine import Token, Tokens
from matryo.engine.postprocess import FloatArray
from matryo.http.openai.encoding import PIECE_NUMBERS

_PIECE_TOKENS = 4096  # that are held as Python objects at a time


@dataclass(frozen=True, slots=True)
class VectorLists:
    """A list of lists of numbers.

    Attributes:
        vectors: `(n, D)` float32, C-contiguous, at least one row, in input order.
    """

    vectors: FloatArray

    @property
    def media_type(self) -> str:
        """JSON."""
        return "application/json"

    @property
    def n_bytes(self) -> None:
        """Unknown before the last piece is made."""

    @property
    def computes(self) -> bool:
        """Every piece is computed."""
        return True

    def pieces(self) -> Iterator[Callable[[], bytes]]:
        """Functions that make the pieces of the body, which may be called on any thread."""
        n_rows, size = self.vectors.shape
        step = max(1, PIECE_NUMBERS // size)
        for start in range(0, n_rows, step):
            yield partial(self._piece, start, min(start + step, n_rows))

    def _piece(self, start: int, end: int) -> bytes:
        rows = orjson.dumps(self.vectors[start:end], option=orjson.OPT_SERIALIZE_NUMPY)
        before = b"[" if start == 0 else b","
        behind = b"]" if end == len(self.vectors) else b""
        return b"".join((before, memoryview(rows)[1:-1], behind))


def token_lists(texts: Sequence[Tokens]) -> bytes:
    """The tokens of some texts, as the items of a JSON list, without the brackets around them."""
    return b",".join(b"[" + b",".join(_parts(tokens)) + b"]" for tokens in texts)


def _parts(tokens: Tokens) -> Iterator[bytes]:
    found = iter(tokens)
    while part := list(itertools.islice(found, _PIECE_TOKENS)):
        yield orjson.dumps([_token(token) for token in part])[1:-1]


def _token(token: Token) -> dict[str, object]:
    start, stop = token.span or (None, None)
    return {
        "id": token.id,
        "text": token.text,
        "special": token.special,
        "start": start,
        "stop": stop,
    }


def strings(texts: Sequence[str]) -> bytes:
    """Some strings, as the items of a JSON list, without the brackets around them."""
    return orjson.dumps(texts)[1:-1]


def joined(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces of a JSON list of the items of each piece."""
    for index, piece in enumerate(pieces):
        yield b"," if index else b"["
        yield piece
    yield b"]"
