"""Hostile bodies are refused, and do not disturb other requests on the same connection."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from tests.contract.conftest import Live, live_server
from tests.fakes import FakeEngine, as_float32

# Examples share a connection on purpose.
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
JSON = {"content-type": "application/json"}
GOOD = b'{"input": "blue sky", "dimensions": 8, "encoding_format": "float", "truncate": null}'

CORPUS = {
    "invalid UTF-8": b'{"input": "\xff\xfe\xfa"}',
    "overlong UTF-8": b'{"input": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"input": "\xed\xa0\xbd"}',
    "lone surrogate": b'{"input": "\\ud83d"}',
    "UTF-16": '{"input": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"input": "a"}',
    "arrays 100,000 deep": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects 100,000 deep": b'{"input":' * 100_000 + b"1" + b"}" * 100_000,
    "arrays of arrays of arrays": b'{"input": [[[1]]]}',
    "NaN": b'{"input": [NaN]}',
    "infinity": b'{"input": "a", "dimensions": Infinity}',
    "1e400": b'{"input": "a", "dimensions": 1e400}',
    "10,000 digits": b'{"input": [' + b"9" * 10_000 + b"]}",
    "10,000 digits, nested": b'{"input": [[' + b"9" * 10_000 + b"]]}",
    "10,000 digits after the point": b'{"input": "a", "dimensions": 1.5' + b"9" * 10_000 + b"}",
    "negative ids": b'{"input": [[-1]]}',
    "ids beyond 64 bits": b'{"input": [18446744073709551616]}',
    "2049 arrays": json.dumps({"input": [[1]] * 2049}).encode(),
    "an array of nothing": b'{"input": [[]]}',
    "raw NUL": b'{"input": "a\x00b"}',
    "raw newline": b'{"input": "a\nb"}',
    "a key of NUL": b'{"input": "a", "\\u0000": 1}',
    "a megabyte of a key": b'{"input": "a", "' + b"k" * 1_000_000 + b'": 1}',
    "a megabyte of a model": b'{"input": "a", "model": "' + b"m" * 1_000_000 + b'"}',
    "comments": b'{"input": "a" /* b */}',
    "two values": b'{"input": "a"}{"input": "b"}',
    "form": b"input=a&model=b",
    "nothing": b"",
}
TAKEN = {
    "NUL": b'{"input": "a\\u0000b"}',
    "duplicate keys": b'{"input": "a", "input": "b"}',
    "white space around": b' \n\t{"input": "a"}\r\n ',
    "a surrogate pair": b'{"input": "\\ud83c\\udf89"}',
    "escaped keys": b'{"\\u0069nput": "a"}',
    "nothing but controls": b'{"input": "\\u0001\\u200b\\u202e"}',
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One server for all tests of this module; strict about fields that nobody knows."""
    with live_server(FakeEngine(), unknown_fields="refuse") as server:
        yield server


@pytest.fixture(scope="module")
def connection(live: Live) -> Iterator[http.client.HTTPConnection]:
    """One connection for all tests of this module, kept alive as by a proxy."""
    wire = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    yield wire
    wire.close()


def send(wire: http.client.HTTPConnection, body: bytes) -> tuple[int, Any]:
    """Status and content of an answer; an error must be a complete error object."""
    wire.request("POST", "/v1/embeddings", body, JSON)
    answer = wire.getresponse()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    content = json.loads(answer.read())
    if answer.status != 200:
        assert set(content) == {"error"}
        assert set(content["error"]) == {"message", "type", "param", "code"}
        assert len(content["error"]["message"]) < 2000
    return answer.status, content


def good_ones_are_answered(wire: http.client.HTTPConnection) -> None:
    """The next request on the same connection gets its own vector."""
    status, content = send(wire, GOOD)
    assert status == 200
    expected = FakeEngine().expected("search_document: blue sky", 8)
    assert np.array_equal(as_float32(content["data"][0]["embedding"]), expected)


@pytest.mark.parametrize("name", CORPUS)
def test_refused(connection: http.client.HTTPConnection, name: str) -> None:
    """A client's fault is a 400, or a 404 for an unknown model, with OpenAI's words."""
    status, _ = send(connection, CORPUS[name])
    assert status == (404 if "model" in name else 400)
    good_ones_are_answered(connection)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(connection: http.client.HTTPConnection, name: str) -> None:
    """An unusual body that is valid JSON is answered."""
    status, content = send(connection, TAKEN[name])
    assert status == 200
    assert len(content["data"]) == 1


def meaning_of(body: bytes) -> tuple[str, int] | None:
    """Text and dimensions that a body near `GOOD` asks for; None if the body must be refused.

    Python's own JSON parser decides what JSON is, so that the server's parser is not its own judge.
    """
    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=lambda name: 1 / 0)
        json.dumps(fields, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    known = json.loads(GOOD)
    fields = {name: value for name, value in fields.items() if name in known or value is not None}
    if "dimension" in fields and "dimensions" not in fields:  # another server's word
        fields["dimensions"] = fields.pop("dimension")
    if not set(fields) <= set(known):
        return None
    text: Any = fields.get("input")
    dimensions: Any = fields.get("dimensions")
    dimensions = 768 if dimensions is None else dimensions
    if not isinstance(text, str) or not text:
        return None
    if type(dimensions) not in (int, float) or dimensions not in range(1, 769):
        return None
    if fields.get("encoding_format") not in ("float", None):
        return None
    if fields.get("truncate") not in (None, True, False, "END", "NONE"):
        return None
    return text, int(dimensions)


def test_meaning() -> None:
    """The function that judges bodies in `test_damaged_bodies` judges known bodies correctly."""
    assert meaning_of(GOOD) == ("blue sky", 8)
    assert meaning_of(GOOD.replace(b"blue sky", b"")) is None
    assert meaning_of(GOOD.replace(b"8", b"8.0")) == ("blue sky", 8)
    assert meaning_of(GOOD.replace(b"8", b"769")) is None
    assert meaning_of(GOOD.replace(b"null", b"[]")) is None
    assert [name for name, body in CORPUS.items() if meaning_of(body)] == []


def check_meaning(wire: http.client.HTTPConnection, body: bytes) -> None:
    """The server answers a body with the vector that the body asks for, or with 400 if none."""
    status, content = send(wire, body)
    meaning = meaning_of(body)
    if meaning is None:
        assert status == 400, body
        return
    assert status == 200, body
    text, dimensions = meaning
    expected = FakeEngine().expected(f"search_document: {text}", dimensions)
    assert np.array_equal(as_float32(content["data"][0]["embedding"]), expected)


@budget(max_examples=300, deadline=None, suppress_health_check=QUIET)
@given(st.data())
def test_damaged_bodies(connection: http.client.HTTPConnection, data: st.DataObject) -> None:
    """A body with bytes inserted, removed or changed gets the vector it now asks for, or 400."""
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        n_out = data.draw(st.integers(0, 8))
        body[start : start + n_out] = data.draw(st.binary(max_size=8))
    check_meaning(connection, bytes(body))
    good_ones_are_answered(connection)


@pytest.mark.parametrize("damage", ["cut", "deleted", "zero", "high bit", "digit", "blank"])
def test_every_byte_damaged(connection: http.client.HTTPConnection, damage: str) -> None:
    """Each byte of a good body, damaged in each of these ways, gives the vector or 400."""
    for i in range(len(GOOD)):
        head, byte, tail = GOOD[:i], GOOD[i], GOOD[i + 1 :]
        damaged = {
            "cut": head,
            "deleted": head + tail,
            "zero": head + b"\0" + tail,
            "high bit": head + bytes([byte | 0x80]) + tail,
            "digit": head + b"7" + tail,
            "blank": head + b" " + tail,
        }
        check_meaning(connection, damaged[damage])
    good_ones_are_answered(connection)


numbers = st.integers() | st.integers(0, 100_300) | st.floats() | st.booleans() | st.none()
CL100K = {*range(100_256), *range(100_257, 100_261), 100_276}
arrays = st.lists(numbers | st.lists(numbers, max_size=5) | st.text(max_size=3), max_size=5)


@budget(max_examples=200, deadline=None, suppress_health_check=QUIET)
@given(arrays)
def test_any_array(connection: http.client.HTTPConnection, value: list[Any]) -> None:
    """Texts and arrays of ids get a vector each; any mixture is a 400."""
    status, content = send(connection, json.dumps({"input": value}).encode())
    if is_ids(value):
        expected = 1
    elif value and (all(map(is_text, value)) or all(map(is_ids, value))):
        expected = len(value)
    else:
        assert status == 400
        return
    assert status == 200
    assert len(content["data"]) == expected


def is_text(value: object) -> bool:
    """Whether a value is a text that may be embedded."""
    return isinstance(value, str) and value != ""


def is_ids(value: object) -> bool:
    """Whether a value is an array of token ids of cl100k_base, which has no id 100256."""
    return (
        isinstance(value, list)
        and value != []
        and all(type(item) in (int, float) and item in CL100K for item in value)
    )


def test_compressed_bodies_are_not_opened(connection: http.client.HTTPConnection) -> None:
    """A compressed body is refused without being decompressed."""
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        connection.request(
            "POST", "/v1/embeddings", b"\x1f\x8b", JSON | {"content-encoding": encoding}
        )
        answer = connection.getresponse()
        assert answer.status == 415
        assert json.loads(answer.read())["error"]["code"] == "unsupported_content_encoding"
    good_ones_are_answered(connection)
