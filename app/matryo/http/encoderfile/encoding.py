"""Vectors as Encoderfile's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import orjson

from matryo.engine.postprocess import FloatArray
from matryo.http.openai.encoding import PIECE_NUMBERS


@dataclass(frozen=True, slots=True)
class Results:
    """What an answer of `/predict` is written from.

    Attributes:
        vectors: `(n, D)` float32, C-contiguous, at least one row, in input order.
        model: id of the model.
        metadata: of the request; None if the request had none.
    """

    vectors: FloatArray
    model: str
    metadata: Mapping[str, str] | None

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
        items = orjson.dumps(
            [{"embedding": row} for row in self.vectors[start:end]],
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        before = b'{"results":[' if start == 0 else b","
        behind = self._tail() if end == len(self.vectors) else b""
        return b"".join((before, memoryview(items)[1:-1], behind))

    def _tail(self) -> bytes:
        facts: dict[str, object] = {"model_id": self.model}
        if self.metadata is not None:
            facts["metadata"] = self.metadata
        return b"]," + orjson.dumps(facts)[1:]
