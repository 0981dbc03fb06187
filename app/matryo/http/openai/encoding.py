"""From the float32 matrix to the bytes of a response, without a Python float between.

`orjson` writes numpy rows directly; base64 is taken from each row's own memory. orjson holds
Python's interpreter lock until it is done, 83 ms for 2048 vectors of 768 numbers. A large matrix is
therefore encoded in pieces, and the answer is sent in these pieces.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from matryo.engine.postprocess import FloatArray
from matryo.http.openai.wire import EncodingFormat
from matryo.service.numbers import quantize
from matryo.service.request import EmbeddingType

PIECE_NUMBERS = 1 << 15
"""Numbers that are encoded in one go, which takes about 2 ms."""

_HEAD = b'{"object":"list","data":['


def most_piece_bytes(n_numbers: int) -> int:
    """Bytes of a piece at most, while the piece is made, of a response of so many numbers.

    A number takes 17 at most, once in its items and once in the piece; less in base64.
    """
    return 36 * min(n_numbers, PIECE_NUMBERS)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a response is written from.

    Attributes:
        vectors: `(n, D)` float32, C-contiguous, at least one row, in input order.
        encoding_format: JSON numbers, or base64 of each row's little-endian bytes.
        embedding_type: the numbers of the response; see `quantize`.
        model: id of the model that made the vectors.
        n_tokens: for `usage`.
    """

    vectors: FloatArray
    encoding_format: EncodingFormat
    embedding_type: EmbeddingType
    model: str
    n_tokens: int

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
        """Functions that make the pieces of the response, which may be called on any thread."""
        n_rows, size = self.vectors.shape
        step = max(1, PIECE_NUMBERS // size)
        for start in range(0, n_rows, step):
            yield partial(self._piece, start, min(start + step, n_rows))

    def _piece(self, start: int, end: int) -> bytes:
        """The items of some rows, with what stands before and behind them in the response."""
        matrix = quantize(self.vectors[start:end], self.embedding_type)
        rows: Any = matrix
        if self.encoding_format == "base64":
            little = matrix.astype(matrix.dtype.newbyteorder("<"), copy=False)
            rows = (binascii.b2a_base64(row.data, newline=False).decode("ascii") for row in little)
        items = orjson.dumps(
            [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows, start)
            ],
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        before = _HEAD if start == 0 else b","
        behind = self._tail() if end == len(self.vectors) else b""
        return b"".join((before, memoryview(items)[1:-1], behind))

    def _tail(self) -> bytes:
        usage = {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}
        return b"]," + orjson.dumps({"model": self.model, "usage": usage})[1:]
