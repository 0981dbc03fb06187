"""Vectors as bytes: which request asks for them, and how the matrix becomes a body.

Source: RFC 9110, section 12.5.1, for the header `Accept`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matryo.engine.postprocess import FloatArray
from matryo.http.pieces import Piece
from matryo.service import Answer, EmbeddingType
from matryo.service.numbers import quantize

RAW = "application/octet-stream"
_JSON = "application/json"

_PIECE_NUMBERS = 1 << 18  # a piece of float32 has 1 MiB
_TYPES: dict[EmbeddingType, str] = {
    "float": "float32",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "int8",
    "ubinary": "uint8",
}
_BITS = 8

# A media range or a parameter; a quoted string may hold commas and semicolons.
_PART = r'(?:"(?:[^"\\]|\\.)*"|[^",;])*'
_RANGE = re.compile(rf"{_PART}(?:;{_PART})*")
_PARAMETER = re.compile(rf";({_PART})")
_QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_MOST_CHARS = 1024  # of all that a request accepts; a browser sends 150


def prefers_raw(accept: Sequence[str]) -> bool:
    """Whether a request asks for bytes rather than for JSON.

    JSON is what a request gets that accepts both alike, neither, or anything.

    Args:
        accept: the values of its `Accept` headers.
    """
    return _is_raw_better(", ".join(accept)[:_MOST_CHARS])


@functools.lru_cache(64)  # a client sends the same with each request
def _is_raw_better(accept: str) -> bool:
    ranges = list(_ranges(accept))
    return _quality(RAW, ranges) > _quality(_JSON, ranges)


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Each media range in lower case, with its quality; ranges that are malformed are left out."""
    for match in _RANGE.finditer(accept):
        media, *_ = match[0].split(";", 1)
        quality = 1.0
        for parameter in _PARAMETER.findall(match[0]):
            name, _, value = parameter.partition("=")
            if name.strip().lower() != "q":
                continue
            if _QUALITY.fullmatch(value.strip()):
                quality = float(value)
                break  # what follows the quality are extensions
            media = ""
        # Our types have no parameters: a range with one, such as a charset, fits JSON all the same.
        if "/" in media:
            yield media.strip().lower(), quality


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of a media type: that of the most specific range that has it; 0 for none."""
    kind = media.partition("/")[0]
    for form in (media, f"{kind}/*", "*/*"):
        found = [quality for name, quality in ranges if name == form]
        if found:
            return max(found)
    return 0.0


@dataclass(frozen=True, slots=True)
class Raw:
    """Rows of numbers, one after the other, least significant byte first.

    Attributes:
        vectors: `(n, D)` float32, C-contiguous, in input order.
        embedding_type: the numbers of the body; see `quantize`.
    """

    vectors: FloatArray
    embedding_type: EmbeddingType

    @property
    def media_type(self) -> str:
        """Bytes of no further type."""
        return RAW

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and numbers of a row; a number of signs holds eight of them."""
        n_rows, size = self.vectors.shape
        packed = self.embedding_type in ("binary", "ubinary")
        return n_rows, size // _BITS if packed else size

    @property
    def dtype(self) -> str:
        """What numpy calls the type of a number."""
        return _TYPES[self.embedding_type]

    @property
    def n_bytes(self) -> int:
        """Bytes of the body."""
        n_rows, size = self.shape
        return n_rows * size * (4 if self.embedding_type == "float" else 1)

    @property
    def computes(self) -> bool:
        """Whether the numbers are others than those of the vectors."""
        return self.embedding_type != "float"

    def pieces(self) -> Iterator[Callable[[], Piece]]:
        """Functions that give the pieces of the body."""
        n_rows, size = self.vectors.shape
        step = max(1, _PIECE_NUMBERS // size)
        for start in range(0, n_rows, step):
            yield partial(self._piece, start, min(start + step, n_rows))

    def _piece(self, start: int, end: int) -> Piece:
        matrix = quantize(self.vectors[start:end], self.embedding_type)
        return matrix.astype(matrix.dtype.newbyteorder("<"), copy=False).data.cast("B")


def most_raw_bytes(n_numbers: int, embedding_type: EmbeddingType) -> int:
    """Bytes that a piece of so many numbers takes beside the vectors, at most."""
    # A number is multiplied, rounded and clipped in float32. Floats are sent as they are.
    return 0 if embedding_type == "float" else 16 * min(n_numbers, _PIECE_NUMBERS)


def raw_headers(raw: Raw, answer: Answer) -> dict[str, str]:
    """What a body of bytes does not say of itself."""
    return {
        "x-matryo-shape": ",".join(map(str, raw.shape)),
        "x-matryo-dtype": raw.dtype,
        "x-matryo-model": answer.model,
        "x-matryo-prompt-tokens": str(answer.n_tokens),
    }
