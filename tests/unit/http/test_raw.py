"""Which requests get bytes, by RFC 9110, and which bytes they get."""

from __future__ import annotations

import numpy as np
import pytest

from matryo.http.raw import Raw, prefers_raw
from matryo.service import EmbeddingType
from matryo.service.numbers import quantize

RAW = "application/octet-stream"


@pytest.mark.parametrize(
    "accept",
    [
        RAW,
        "Application/Octet-Stream",
        f"{RAW};q=0.5",
        f"{RAW}, application/json;q=0.9",
        f"application/json;q=0.5,{RAW};q=0.501",
        f"{RAW}, */*;q=0.1",
        f"*/*;q=0.1, {RAW}",
        f"{RAW} ; q=1.000",
        "application/*, application/json;q=0",
        "*/*, application/json;q=0.2",
        f'text/x;a="{RAW};q=0, ", {RAW}',
        f"application/json;q=0, {RAW};q=0.001",
        f"{RAW};q=0.8;ext=1, application/json;charset=utf-8;q=0.7",
        f"application/json;q=9, {RAW};q=0.1",
    ],
)
def test_bytes_are_preferred(accept: str) -> None:
    """A request that prefers bytes to JSON gets bytes."""
    assert prefers_raw([accept])


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/*",
        "application/json",
        "text/html",
        f"{RAW}, application/json",
        f"{RAW}, */*",
        f"{RAW};q=0",
        f"{RAW};q=0, */*",
        f"{RAW};q=2",
        f"{RAW};q=x",
        f"{RAW};q=0.2, application/json;q=0.3",
        f"{RAW};q=0.2, application/*;q=0.3",
        f'text/x;a="{RAW}"',
        f'text/x;a=", {RAW}, "',
        "application/octet",
        ",,;;",
        '"',
    ],
)
def test_json_is_the_rest(accept: str) -> None:
    """JSON is the answer to a request that takes both alike, neither, anything, or says nothing."""
    assert not prefers_raw([accept])


def test_several_headers_are_one_list() -> None:
    """Several headers count as one list."""
    assert prefers_raw(["text/html", RAW])
    assert not prefers_raw([RAW, "application/json"])
    assert not prefers_raw([])


def test_hostile_lists_cost_little() -> None:
    """A header of quotes and backslashes alone is read in time, and asks for nothing."""
    for part in ('\\"', '"', ";", ",", '";'):
        assert not prefers_raw([part * 20_000])


@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("n_rows", [1, 3, 2000])
def test_bytes_are_those_of_the_matrix(kind: EmbeddingType, n_rows: int) -> None:
    """The pieces are the rows of the matrix in order, of the type and shape that are announced."""
    matrix = np.random.default_rng(0).standard_normal((n_rows, 256), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    raw = Raw(matrix, kind)
    pieces = [make() for make in raw.pieces()]
    content = b"".join(pieces)
    assert len(content) == raw.n_bytes
    assert (len(pieces) > 1) == (n_rows == 2000)
    found = np.frombuffer(content, np.dtype(raw.dtype).newbyteorder("<")).reshape(raw.shape)
    assert np.array_equal(found, quantize(matrix, kind))
