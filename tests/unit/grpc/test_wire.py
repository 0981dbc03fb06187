"""Vectors as protobuf's bytes, and fields counted before they are parsed."""

from __future__ import annotations

import numpy as np
import pytest

from matryo.core.errors import InvalidRequest
from matryo.grpc import wire
from matryo.grpc.messages import make, parse

REQUEST = make("inference.ModelInferRequest")


@pytest.mark.parametrize(("n_rows", "size"), [(1, 1), (3, 31), (2, 32), (5, 768), (2, 5000)])
def test_rows(n_rows: int, size: int) -> None:
    """Rows come out of protobuf with their very bits, whatever their length is."""
    matrix = np.random.default_rng(1).standard_normal((n_rows, size)).astype(np.float32)
    raw = wire.rows(1, 1, matrix)
    answer = make("encoderfile.sentence_embedding.SentenceEmbeddingResponse").FromString(raw)
    found = np.array([list(row.embedding) for row in answer.results], np.float32)
    assert np.array_equal(found, matrix)
    one = make("tei.v1.EmbedResponse").FromString(wire.floats(1, matrix[0]))
    assert np.array_equal(np.array(one.embeddings, np.float32), matrix[0])


def test_count_fields() -> None:
    """Fields of a message and of all messages in it count, and bytes of packed long numbers."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [300, 1], "contents": {}}
    message = REQUEST(inputs=[tensor, tensor], raw_input_contents=[b"a" * 300, b""])
    message.parameters["dimensions"].int64_param = 64
    raw = message.SerializeToString()
    # Two inputs with four fields and a shape of three bytes each, two contents, a parameter: key,
    # value, and the choice in it.
    assert wire.count_fields(raw, REQUEST.DESCRIPTOR, 100) == 2 * (5 + 3) + 2 + 4
    assert wire.count_fields(raw, REQUEST.DESCRIPTOR, 5) in range(6, 23)
    assert wire.count_fields(b"", REQUEST.DESCRIPTOR, 5) == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",  # a length is missing
        b"\x0a\x05ab",  # ends behind the message
        b"\x0b\x0c",  # a group
        b"\xff" * 12,  # a varint of more than ten bytes
        b"\x09\0\0",  # half a number
        b"\x2a\x02\x0a\x05",  # a message in the message that ends behind it
    ],
)
def test_malformed(raw: bytes) -> None:
    """Bytes that are no message count as None, and are refused before they are parsed."""
    assert wire.count_fields(raw, REQUEST.DESCRIPTOR, 100) is None
    with pytest.raises(InvalidRequest, match=r"inference\.ModelInferRequest"):
        parse(raw + b"\0" * 5000, REQUEST.DESCRIPTOR, 100)
