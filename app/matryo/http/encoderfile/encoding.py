"""Vectors as Encoderfile's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from matryo.http.rows import JsonRows


@dataclass(frozen=True, slots=True)
class Results(JsonRows):
    """What an answer of `/predict` is written from.

    Attributes:
        model: id of the model.
        metadata: of the request; None if the request had none.
    """

    model: str
    metadata: Mapping[str, str] | None

    @property
    def head(self) -> bytes:
        """The list's begin."""
        return b'{"results":['

    @property
    def tail(self) -> bytes:
        """The model, and the request's metadata."""
        facts: dict[str, object] = {"model_id": self.model}
        if self.metadata is not None:
            facts["metadata"] = self.metadata
        return b"]," + orjson.dumps(facts)[1:]

    def items(self, start: int, end: int) -> object:
        """An object for each row."""
        return [{"embedding": row} for row in self.vectors[start:end]]
