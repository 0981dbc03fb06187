"""Bodies that are large in the ways a caller can make a body large; each of about `n_bytes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def _text(piece: str) -> Callable[[int], bytes]:
    """One text that repeats a piece, which is JSON already."""

    def make(n_bytes: int) -> bytes:
        encoded = piece.encode()
        return b'{"input": "' + encoded * (n_bytes // len(encoded)) + b'"}'

    return make


def _list(item: str) -> Callable[[int], bytes]:
    """A list that repeats an item."""

    def make(n_bytes: int) -> bytes:
        encoded = item.encode() + b","
        return b'{"input": [' + encoded * (n_bytes // len(encoded)) + item.encode() + b"]}"

    return make


def _keys(n_bytes: int) -> bytes:
    """An object of a million keys that no API has."""
    count = n_bytes // 16
    return b'{"input": "a", ' + b", ".join(b'"k%08d": 1' % i for i in range(count)) + b"}"


def _nested(n_bytes: int) -> bytes:
    """Lists in lists."""
    return b'{"input": ' + b"[" * (n_bytes // 2) + b"]" * (n_bytes // 2) + b"}"


def _texts(n_bytes: int) -> bytes:
    """As many texts as a request may have, each of thousands of characters."""
    text = b'"' + b"sky and grass " * (n_bytes // 2048 // 14) + b'"'
    return b'{"input": [' + b",".join([text] * 2048) + b"]}"


def _ids(n_bytes: int) -> bytes:
    """As many arrays of ids as a request may have, each of a blank again and again."""
    ids = b"[" + b",".join([b"220"] * (n_bytes // 2048 // 4)) + b"]"
    return b'{"input": [' + b",".join([ids] * 2048) + b"]}"


SHAPES: Mapping[str, Callable[[int], bytes]] = {
    "blanks": _text(" "),
    "word": _text("a"),
    "numbers": _list("1"),
    "ids": _ids,
    "lists": _list("[220]"),
    "keys": _keys,
    "nested": _nested,
    "escapes": _text("\\u00e9"),
    "emoji": _text("\N{PILE OF POO}"),
    "texts": _texts,
    "floats": _list("0.12345678"),
    "nulls": _text("\\u0000"),
}
