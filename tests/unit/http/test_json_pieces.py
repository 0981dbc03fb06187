"""A body that is parsed in pieces has the values and the errors of one that is parsed whole."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.http.openai import json_pieces
from matryo.http.openai.parsing import _not_utf8, _why
from matryo.http.openai.tally import Tally
from matryo.service.limits import RequestLimits

NO_LIMITS = RequestLimits()
LONG = 6


def in_pieces(body: bytes, piece_bytes: int = 7) -> str:
    """The value of a body that is counted and parsed in tiny pieces, or its error."""
    tally = Tally(NO_LIMITS, piece_bytes, LONG)
    try:
        tally.feed(body)
        return repr(json_pieces.loads(body, tally.finish(), LONG))
    except json_pieces.NotJson as exc:
        return _why(body, exc)


def at_once(body: bytes) -> str:
    """The value of a body that orjson parses whole, or its error."""
    try:
        return repr(orjson.loads(body))
    except orjson.JSONDecodeError as exc:
        return _why(body, exc)


texts = st.text(max_size=20) | st.sampled_from(
    ["\\" * 9, '"' * 9, "a\\", "\U0001f389" * 5, "\u4e00" * 7, "\n\t\0" * 3, "aaaaaaaa", "input"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 40))
def test_any_json(value: object, ascii_only: bool, indent: int | None, piece_bytes: int) -> None:
    """Every value is the same, wherever the pieces end, with escapes and without."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    assert in_pieces(body, piece_bytes) == at_once(body)


@given(values, st.booleans(), st.integers(0, 2**32), st.binary(max_size=6))
def test_damaged_json(value: object, ascii_only: bool, seed: int, damage: bytes) -> None:
    """Every error is the same, with its line, column and character in the body."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=random.Random(seed).choice([None, 1]))
    body = bytearray(text.encode("utf-8", "surrogatepass"))
    start = random.Random(seed).randrange(len(body) + 1)
    body[start : start + random.Random(seed).randrange(4)] = damage
    assert in_pieces(bytes(body)) == at_once(bytes(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'"',
        b'"aaaaaaaaaa',
        b'"aaaaaaaaaa\\',
        b'"aaaaaaaaaa" "',
        b'{"aaaaaaaaaa": 1, "\\u0061aaaaaaaaa": 2, "aaaaaaaaaa": 3}',
        b'{"k": 1, "\\u006b\\u006b": 2, "\\u006b": 3, "kk": 4, "k": 5}',
        b'["aaaaaaaaaa", "bbbbbbbb\\x", "cccccccc\\q", nul]',
        b'["aaaaaaaaaa", nul, "bbbbbbbb\\x"]',
        b'["\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4",\n "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4" x]',
        b'["aaaaaaaaaa\n"]',
        b'["aaaaaaaa\\ud83d"]',
        b'["aaaaaaaa", "bbbbbbbb\xff"]',
        b'["aaaaaaaa" \xff "bbbbbbbb"]',
        b'["aaaaaaaa", "bbbbbbbb\xe4\xb8"]',
        b'{\\"aaaaaaaaaa": "bbbbbbbbbb"}',
        b'["aaaaaaaaaa", NaN]',
        b"[" * 2000 + b'"aaaaaaaaaa"' + b"]" * 2000,
        b"[" * 400 + b'"aaaaaaaaaa"' + b"]" * 400,
        b'\xef\xbb\xbf["aaaaaaaaaa"]',
        b'{"aaaaaaaaaa": {"bbbbbbbbbb": ["cccccccccc", 1, null, {"d": "eeeeeeeeee"}]}}',
    ],
)
def test_corners(body: bytes) -> None:
    """Escaped quotes, repeated keys, several faults and broken characters are no exceptions."""
    for piece_bytes in (1, 2, 3, 1000):
        assert in_pieces(body, piece_bytes) == at_once(body)


def test_stand_ins_cannot_be_guessed() -> None:
    """A string of the caller that looks like a stand-in stays what it is."""
    body = json.dumps([f"{'0' * 16}{n}" for n in range(40)] + ["a" * 100]).encode()
    assert in_pieces(body) == at_once(body)


def test_long_strings_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of orjson gets more than one long string."""
    given_bytes: list[int] = []
    loads = orjson.loads

    def record(data: bytes) -> Any:
        given_bytes.append(len(data))
        return loads(data)

    body = json.dumps({"input": ["a" * 100_000] * 20}).encode()
    tally = Tally(NO_LIMITS)
    tally.feed(body)
    strings = tally.finish()
    monkeypatch.setattr("orjson.loads", record)
    assert json_pieces.loads(body, strings) == {"input": ["a" * 100_000] * 20}
    assert max(given_bytes) == 100_002
    assert len(given_bytes) == 21


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.integers(1, 9))
def test_bytes_that_are_not_utf8(body: bytes, step: int) -> None:
    """The first byte that is not UTF-8 is found, wherever the steps end."""
    expected = None
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        expected = exc.start
    assert _not_utf8(body, step) == expected
