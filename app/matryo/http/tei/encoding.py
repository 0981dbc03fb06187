"""Vectors, tokens and strings as TEI's JSON."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from matryo.engine import Token, Tokens
from matryo.http.rows import JsonRows

_PIECE_TOKENS = 4096  # that are held as Python objects at a time


@dataclass(frozen=True, slots=True)
class VectorLists(JsonRows):
    """A list of lists of numbers."""

    @property
    def head(self) -> bytes:
        """The list's begin."""
        return b"["

    @property
    def tail(self) -> bytes:
        """The list's end."""
        return b"]"

    def items(self, start: int, end: int) -> object:
        """The rows themselves."""
        return self.vectors[start:end]


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
