"""JSON of a matrix in pieces; each door writes the items of its own API.

`orjson` writes numpy rows directly, without a Python float between. It holds Python's interpreter
lock until it is done, 83 ms for 2048 vectors of 768 numbers. A large matrix is therefore encoded in
pieces, and the answer is sent in these pieces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import orjson

from matryo.engine.postprocess import FloatArray

PIECE_NUMBERS = 1 << 15
"""Numbers that are encoded in one go, which takes about 2 ms."""


def most_piece_bytes(n_numbers: int) -> int:
    """Bytes of a piece at most, while the piece is made, of a response of so many numbers.

    A number takes 17 at most, once in its items and once in the piece; less in base64.
    """
    return 36 * min(n_numbers, PIECE_NUMBERS)


@dataclass(frozen=True, slots=True)
class JsonRows(ABC):
    """A response with an item for each row of a matrix; see `Writing`.

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
        return None

    @property
    def computes(self) -> bool:
        """Every piece is computed."""
        return True

    @property
    @abstractmethod
    def head(self) -> bytes:
        """What stands before the first item."""

    @property
    @abstractmethod
    def tail(self) -> bytes:
        """What stands behind the last item."""

    @abstractmethod
    def items(self, start: int, end: int) -> object:
        """The items of the rows from `start` to `end`: a list or a matrix, for `orjson`."""

    def pieces(self) -> Iterator[Callable[[], bytes]]:
        """Functions that make the pieces of the response, which may be called on any thread."""
        n_rows, size = self.vectors.shape
        step = max(1, PIECE_NUMBERS // size)
        for start in range(0, n_rows, step):
            yield partial(self._piece, start, min(start + step, n_rows))

    def _piece(self, start: int, end: int) -> bytes:
        """The items of some rows, with what stands before and behind them in the response."""
        items = orjson.dumps(self.items(start, end), option=orjson.OPT_SERIALIZE_NUMPY)
        before = self.head if start == 0 else b","
        behind = self.tail if end == len(self.vectors) else b""
        return b"".join((before, memoryview(items)[1:-1], behind))
