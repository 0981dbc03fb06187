"""Bytes of a response: floats, base64 and the smaller types."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.errors import InvalidRequest
from matryo.engine.postprocess import FloatArray, l2_normalize
from matryo.http.openai.encoding import Encoding
from matryo.http.rows import PIECE_NUMBERS, most_piece_bytes
from matryo.service.numbers import check_embedding_type, quantize
from tests.fakes import as_float32


def vectors(n: int = 3, size: int = 64, seed: int = 0) -> FloatArray:
    """Unit vectors."""
    rng = np.random.default_rng(seed)
    return l2_normalize(rng.standard_normal((n, size), dtype=np.float32))


def encoding_of(matrix: Any, encoding_format: Any, embedding_type: Any = "float") -> Encoding:
    """The encoding of a matrix."""
    return Encoding(matrix, encoding_format, embedding_type, "m", 7)


def decoded(matrix: Any, encoding_format: Any, embedding_type: Any = "float") -> Any:
    """The response as a client reads it."""
    encoding = encoding_of(matrix, encoding_format, embedding_type)
    return json.loads(b"".join(make() for make in encoding.pieces()))


def at_once(matrix: Any, encoding_format: str, embedding_type: Any) -> bytes:
    """The response as one call of orjson writes it."""
    numbers: Any = quantize(matrix, embedding_type)
    rows = (
        numbers
        if encoding_format == "float"
        else [base64.b64encode(row).decode() for row in numbers]
    )
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    answer = {"object": "list", "data": data, "model": "m"}
    return orjson.dumps(
        answer | {"usage": {"prompt_tokens": 7, "total_tokens": 7}},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("embedding_type", ["float", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize(("n", "size"), [(1, 8), (42, 768), (43, 768), (300, 768), (2, 40_000)])
def test_pieces_are_the_response(
    encoding_format: Any, embedding_type: Any, n: int, size: int
) -> None:
    """The pieces have the bytes of a response that is written at once."""
    matrix = vectors(n, size)
    encoding = encoding_of(matrix, encoding_format, embedding_type)
    pieces = [make() for make in encoding.pieces()]
    whole = b"".join(pieces)
    assert whole == at_once(matrix, encoding_format, embedding_type)
    assert len(pieces) == math.ceil(n / max(1, PIECE_NUMBERS // size))


def test_the_widest_numbers() -> None:
    """The bound on a piece's bytes holds for the floats that take the most characters."""
    matrix: Any = np.full((300, 512), -1.1754944e-38, np.float32)
    encoding = encoding_of(matrix, "float")
    bound = most_piece_bytes(matrix.size)
    assert bound == most_piece_bytes(10 * matrix.size)
    assert max(2 * len(make()) for make in encoding.pieces()) <= bound
    few = encoding_of(matrix[:5], "float")
    assert sum(2 * len(make()) for make in few.pieces()) <= most_piece_bytes(5 * 512)


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_base64_is_float_is_the_matrix(n: int, size: int, seed: int) -> None:
    """Both encodings give exactly the float32 values, in order."""
    matrix = vectors(n, size, seed)
    floats, packed = decoded(matrix, "float"), decoded(matrix, "base64")
    for i in range(n):
        assert floats["data"][i]["index"] == packed["data"][i]["index"] == i
        bits = np.frombuffer(base64.b64decode(packed["data"][i]["embedding"]), "<f4")
        assert np.array_equal(bits, matrix[i])
        assert np.array_equal(as_float32(floats["data"][i]["embedding"]), matrix[i])


def test_shape_of_a_response() -> None:
    """The response has all fields of OpenAI's schema, and no other field."""
    answer = decoded(vectors(1), "float")
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "m")
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert set(answer["data"][0]) == {"object", "index", "embedding"}
    assert answer["data"][0]["object"] == "embedding"


def test_int8_keeps_the_angles() -> None:
    """int8 and uint8 hold the same levels, and cosines hardly change."""
    matrix = vectors(200, 384)
    levels: Any = quantize(matrix, "int8")
    assert levels.dtype == np.int8
    assert np.array_equal(
        quantize(matrix, "uint8"), (levels.astype(np.int16) + 128).astype(np.uint8)
    )
    rounded = levels.astype(np.float32)
    cosines = (rounded * matrix).sum(-1) / np.linalg.norm(rounded, axis=-1)
    assert cosines.min() > 0.9995
    assert levels.min() >= -127


def test_int8_clips_outliers() -> None:
    """A component outside the range is clipped and does not wrap round."""
    one: Any = np.zeros((1, 64), np.float32)
    one[0, :2] = [1, -1]
    levels: Any = quantize(one, "int8")
    assert levels[0, :2].tolist() == [127, -127]


def test_bits() -> None:
    """Signs come most significant bit first; binary is ubinary minus 128."""
    row: Any = np.array([[1, -1, 1, 1, -1, -1, 0, 1, -1, -1, -1, -1, -1, -1, -1, 1]], np.float32)
    assert quantize(row, "ubinary").tolist() == [[0b10110001, 0b00000001]]
    assert quantize(row, "binary").tolist() == [[0b10110001 - 128, 1 - 128]]
    assert quantize(row, "binary").dtype == np.int8


@pytest.mark.parametrize(
    ("embedding_type", "dtype"),
    [("int8", "<i1"), ("uint8", "<u1"), ("binary", "<i1"), ("ubinary", "<u1")],
)
def test_small_types_travel(embedding_type: Any, dtype: str) -> None:
    """The smaller types are integers in JSON and raw bytes in base64."""
    matrix: Any = quantize(vectors(2), embedding_type)
    as_json, packed = (decoded(vectors(2), form, embedding_type) for form in ("float", "base64"))
    for row, listed, text in zip(matrix, as_json["data"], packed["data"], strict=True):
        assert listed["embedding"] == row.tolist()
        assert np.array_equal(np.frombuffer(base64.b64decode(text["embedding"]), dtype), row)


def test_bits_fill_their_bytes() -> None:
    """Binary vectors of a size that eight does not divide are refused."""
    check_embedding_type("binary", 64)
    check_embedding_type("int8", 63)
    with pytest.raises(InvalidRequest, match="63 is not a multiple of 8"):
        check_embedding_type("ubinary", 63)
