"""From the float32 matrix to the bytes of a response, without a Python float between.

`orjson` writes numpy rows directly; base64 is taken from each row's own memory.
"""

from __future__ import annotations

import binascii
from typing import Any

import orjson

from matryo.http.openai.wire import EncodingFormat
from matryo.service.numbers import Matrix


def encode_response(
    matrix: Matrix, encoding_format: EncodingFormat, *, model: str, n_tokens: int
) -> bytes:
    """The body of an embeddings response.

    Args:
        matrix: `(n, D)`, C-contiguous, rows in input order.
        encoding_format: JSON numbers, or base64 of each row's little-endian bytes.
        model: id of the model that made them.
        n_tokens: for `usage`.
    """
    rows: Any = matrix
    if encoding_format == "base64":
        little = matrix.astype(matrix.dtype.newbyteorder("<"), copy=False)
        rows = (binascii.b2a_base64(row.data, newline=False).decode("ascii") for row in little)
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows)
            ],
            "model": model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
