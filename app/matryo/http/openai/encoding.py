"""From the float32 matrix to OpenAI's response. Base64 is taken from each row's own memory."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Any

import orjson

from matryo.http.openai.wire import EncodingFormat
from matryo.http.rows import JsonRows
from matryo.service.numbers import quantize
from matryo.service.request import EmbeddingType


@dataclass(frozen=True, slots=True)
class Encoding(JsonRows):
    """What a response is written from.

    Attributes:
        encoding_format: JSON numbers, or base64 of each row's little-endian bytes.
        embedding_type: the numbers of the response; see `quantize`.
        model: id of the model that made the vectors.
        n_tokens: for `usage`.
    """

    encoding_format: EncodingFormat
    embedding_type: EmbeddingType
    model: str
    n_tokens: int

    @property
    def head(self) -> bytes:
        """The list's begin."""
        return b'{"object":"list","data":['

    @property
    def tail(self) -> bytes:
        """The model and what the texts cost."""
        usage = {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}
        return b"]," + orjson.dumps({"model": self.model, "usage": usage})[1:]

    def items(self, start: int, end: int) -> object:
        """An object for each row."""
        matrix = quantize(self.vectors[start:end], self.embedding_type)
        rows: Any = matrix
        if self.encoding_format == "base64":
            little = matrix.astype(matrix.dtype.newbyteorder("<"), copy=False)
            rows = (binascii.b2a_base64(row.data, newline=False).decode("ascii") for row in little)
        return [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(rows, start)
        ]
