"""A body that holds too much is refused while it arrives, before anything is made of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.errors import InvalidRequest, RequestError, TooManyTexts, TooManyTokens
from matryo.http.openai.tally import MAX_STRING_BYTES, SMALL_BYTES, Tally
from matryo.service.limits import RequestLimits

LIMITS = RequestLimits(max_texts=2048, max_tokens=300_000)
MIB = 1 << 20


def n_read(body: bytes, piece_bytes: int = 50_000, limits: RequestLimits = LIMITS) -> int:
    """Bytes of a body that were fed when it was refused; the error is raised with them."""
    tally = Tally(limits)
    for start in range(0, len(body), piece_bytes):
        try:
            tally.feed(body[start : start + piece_bytes])
        except RequestError as exc:
            exc.add_note(str(start))
            raise
    tally.finish()
    return len(body)


FLOODS: dict[str, tuple[bytes, type[RequestError], str, int]] = {
    "numbers": (b'{"input": [' + b"1," * (8 * MIB), TooManyTokens, "at least", 2 * MIB),
    "decimals": (b'{"input": [' + b"1.5," * (4 * MIB), TooManyTokens, "at least", 2 * MIB),
    "nulls": (b'{"input": [' + b"null," * (3 * MIB), TooManyTokens, "at least", 2 * MIB),
    "arrays of one id": (b'{"input": [' + b"[1]," * (4 * MIB), TooManyTexts, "at least", MIB),
    "empty texts": (b'{"input": [' + b'"",' * (4 * MIB), TooManyTexts, "at least", MIB),
    "quotes": (b'"' * (16 * MIB), TooManyTexts, "at least", MIB),
    "objects": (b'{"input": [' + b"{}," * (4 * MIB), TooManyTexts, "at least", MIB),
    "arrays in arrays": (b"[" * (16 * MIB), TooManyTexts, "at least", MIB),
    "objects in objects": (b'{"a":' * (3 * MIB), InvalidRequest, "at most 4096", MIB),
    "fields": (
        b'{"input": "a"' + b"".join(b',"k%d":0' % n for n in range(1_000_000)),
        InvalidRequest,
        "at most 4096 are read",
        MIB,
    ),
    "fields in a field": (
        b'{"input": "a", "metadata": {' + b"".join(b',"k%d":0' % n for n in range(1_000_000)),
        InvalidRequest,
        "at most 4096 are read",
        MIB,
    ),
    "a text": (b'{"input": "' + b"a" * (16 * MIB), InvalidRequest, "at least", 3 * MIB),
    "blanks in a text": (b'{"input": "' + b" " * (16 * MIB), InvalidRequest, "at least", 3 * MIB),
    "escapes": (b'{"input": "' + b"\\u0000" * (3 * MIB), InvalidRequest, "at least", 3 * MIB),
    "backslashes": (b'{"input": "' + b"\\" * (16 * MIB), InvalidRequest, "at least", 3 * MIB),
    "a key": (b'{"' + b"k" * (16 * MIB), InvalidRequest, "at least", 3 * MIB),
    "blanks": (b'{"input": ' + b" " * (16 * MIB), InvalidRequest, "outside of strings", 12 * MIB),
    "a number": (b'{"input": ' + b"9" * (16 * MIB), InvalidRequest, "outside", 12 * MIB),
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("piece_bytes", [1021, 50_000, 16 * MIB])
def test_floods(name: str, piece_bytes: int) -> None:
    """Each flood is refused with its own error, long before its end if it arrives in pieces."""
    body, error, message, most_read = FLOODS[name]
    assert len(body) > 8 * MIB
    with pytest.raises(error, match=message) as caught:
        n_read(body, piece_bytes)
    assert len(caught.value.message) < 400
    assert int(caught.value.__notes__[0]) <= most_read


@pytest.mark.parametrize(
    "value",
    [
        ["a" * 7000] * 2048,
        ['"\\' * 3000] * 2048,
        [[100_000] * 146] * 2048,
        [100_000] * 300_000,
        ["a" * (MAX_STRING_BYTES - 2)] * 7,
    ],
)
def test_full_requests_pass(value: object) -> None:
    """A body within the limits of a request is read to its end."""
    body = json.dumps({"input": value, "model": "m", "user": "u"}).encode()
    assert n_read(body) == len(body)


def test_a_copy_of_the_texts_passes() -> None:
    """A gateway may send a copy of the texts in a field of its own."""
    texts = ["some words"] * 2048
    body = json.dumps({"input": texts, "proxy_server_request": {"body": {"input": texts}}}).encode()
    assert n_read(body) == len(body)


def test_small_bodies_are_not_counted() -> None:
    """A body that is parsed in one go has the exact errors of its parts instead."""
    assert n_read(b"[" * SMALL_BYTES) == SMALL_BYTES


def test_no_limits() -> None:
    """Without limits of a request, texts, arrays and numbers are not bounded."""
    body = b'{"input": [' + b'["a", 1],' * MIB
    assert n_read(body, limits=RequestLimits()) == len(body)


texts = st.text(max_size=12) | st.sampled_from(["\\", '"', '\\"', "\\\\", "aaaa\\", ",:[{"])


@given(st.lists(texts, max_size=6), st.booleans(), st.integers(1, 9), st.integers(1, 30))
def test_strings_are_found(
    values: list[str], ascii_only: bool, piece_bytes: int, fed_bytes: int
) -> None:
    """The long strings are known by their offsets, wherever the pieces end."""
    body = json.dumps({"input": values}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    tally = Tally(RequestLimits(), piece_bytes, 4)
    for start in range(0, len(body), fed_bytes):
        tally.feed(body[start : start + fed_bytes])
    raw = [json.dumps(value, ensure_ascii=ascii_only)[1:-1] for value in ("input", *values)]
    expected = [one.encode("utf-8", "surrogatepass") for one in raw]
    found = [body[start:end] for start, end in tally.finish()]
    assert found == [one for one in expected if len(one) > 4]
