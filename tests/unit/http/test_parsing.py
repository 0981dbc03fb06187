"""Bodies are read strictly, and errors have OpenAI's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.errors import InvalidRequest
from matryo.http.openai.parsing import parse_request
from matryo.http.openai.tally import SMALL_BYTES
from matryo.service.limits import RequestLimits

LIMITS = RequestLimits(max_texts=2048)


def parse(**fields: Any) -> Any:
    """Parse a body of these fields."""
    return parse_request(json.dumps(fields).encode(), LIMITS)


def refused(**fields: Any) -> InvalidRequest:
    """The error of a body of these fields."""
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_forms_of_input() -> None:
    """The input is a string, which may be empty, or a list of strings."""
    assert parse(input="a")[1].strings == ["a"]
    assert parse(input="")[1].strings == [""]
    assert parse(input=["a", "b"])[1].strings == ["a", "b"]
    assert parse(input=["a"] * 2048)[1].is_list


def test_forms_of_token_arrays() -> None:
    """A flat array of ids is one text, and an array of arrays is several texts."""
    one = parse(input=[1, 2, 3])[1]
    assert (one.token_arrays, one.strings, one.is_list, len(one)) == ([[1, 2, 3]], (), False, 1)
    several = parse(input=[[1, 2], [3]])[1]
    assert (several.token_arrays, several.is_list, len(several)) == ([[1, 2], [3]], True, 2)
    assert parse(input=[1, 2.0, 3e0])[1].token_arrays == [[1, 2, 3]]
    assert parse(input=[[1, 2.0]])[1].token_arrays == [[1, 2]]
    assert len(parse(input=[5] * 8191)[1]) == 1
    assert len(parse(input=[[5] * 8191, [6]])[1]) == 2


@pytest.mark.parametrize(
    ("value", "message", "code"),
    [
        ([], "empty array", "empty_array"),
        (["a"] * 2049, "maximum length 2048, but got an array with length 2049", "array_above_max_length"),
        (["a", ""], "'input[1]'", "empty_string"),
        (["a", 1], "'input[1]': expected a string, as 'input[0]' is, but got an integer", "invalid_type"),
        (["a", None], "'input[1]': expected a string, as 'input[0]' is, but got null", "invalid_type"),
        (["a", ["b"]], "'input[1]': expected a string, as 'input[0]' is, but got an array", "invalid_type"),
        ([True, False], "'input[0]': expected a string, an integer or an array of integers, but got a boolean", "invalid_type"),
        ([1.5], "integers, but got a decimal number", "invalid_type"),
        ([1, "a"], "'input[1]': expected an integer, as 'input[0]' is, but got a string", "invalid_type"),
        ([1, True], "'input[1]': expected an integer, as 'input[0]' is, but got a boolean", "invalid_type"),
        ([1, 2.5], "'input[1]': expected an integer, as 'input[0]' is, but got a decimal number", "invalid_type"),
        ([[1], 2], "'input[1]': expected an array of integers, as 'input[0]' is, but got an integer", "invalid_type"),
        ([[1], "a"], "'input[1]': expected an array of integers, as 'input[0]' is, but got a string", "invalid_type"),
        ([[1], []], "'input[1]': empty array", "empty_array"),
        ([[1, 2], [3, "a"]], "'input[1][1]': expected an integer, but got a string", "invalid_type"),
        ([[1, True]], "'input[0][1]': expected an integer, but got a boolean", "invalid_type"),
        ([[[1]]], "'input[0][0]': expected an integer, but got an array", "invalid_type"),
        ([[1]] * 2049, "maximum length 2048, but got an array with length 2049", "array_above_max_length"),
        (None, "'input': expected a string or an array, but got null", "invalid_type"),
        (7, "'input': expected a string or an array, but got an integer", "invalid_type"),
        ({"a": 1}, "but got an object", "invalid_type"),
    ],
)  # fmt: skip
def test_faults_of_input(value: object, message: str, code: str) -> None:
    """An error names the input's index, the expected type and the type it has."""
    error = refused(input=value)
    assert message in error.message
    assert (error.param, error.code) == ("input", code)


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"dimensions": "64"}, "'dimensions': expected an integer, but got a string", "dimensions"),
        ({"dimensions": 64.5}, "expected an integer, but got a decimal number", "dimensions"),
        ({"dimensions": True}, "expected an integer, but got a boolean", "dimensions"),
        ({"dimensions": 0}, "'dimensions': 0. It must be at least 1", "dimensions"),
        ({"dimensions": -3}, "'dimensions': -3", "dimensions"),
        ({"encoding_format": "hex"}, "'encoding_format': 'hex'. Supported values are: 'float' or 'base64'", "encoding_format"),
        ({"encoding_format": 1}, "'encoding_format': expected a string, but got an integer", "encoding_format"),
        ({"model": 5}, "'model': expected a string", "model"),
        ({"user": ["a"]}, "'user': expected a string, but got an array", "user"),
        ({"model": ""}, "'model': empty string", "model"),
        ({"truncate": "START"}, "'truncate': 'START'. Supported values are: true, false, 'END'", "truncate"),
        ({"truncate": 1}, "'truncate': expected a boolean, 'END' or 'NONE', but got an integer", "truncate"),
        ({"embedding_type": "fp8"}, "'ubinary'", "embedding_type"),
        ({"encoding_format": "x" * 1000}, "xxx…", "encoding_format"),
    ],
)  # fmt: skip
def test_faults_of_fields(fields: dict[str, Any], message: str, param: str) -> None:
    """Values are not converted; an error names the field, its value and the allowed values."""
    error = refused(input="a", **fields)
    assert message in error.message
    assert error.param == param
    assert len(error.message) < 400


def test_unknown_fields_where_the_operator_is_strict() -> None:
    """A name that nobody knows is refused, with the names that are known."""
    body = json.dumps({"input": "a", "colour": 1}).encode()
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body, LIMITS, "refuse")
    assert caught.value.message.startswith("Unrecognized request argument supplied: 'colour'")
    assert "input_type" in caught.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'\xef\xbb\xbf{"input": "a"}', "begins with a byte order mark of UTF-8"),
        ('{"input": "a"}'.encode("utf-16"), "begins with UTF-16; send UTF-8"),
        (
            '{"input": "caf\u00e9"}'.encode("latin-1"),
            "byte 0xe9 at offset 14 is not UTF-8 (is the body in Latin-1",
        ),
    ],
)
def test_bodies_in_other_encodings(body: bytes, message: str) -> None:
    """The error says what was found, and where."""
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body, LIMITS)
    assert message in caught.value.message


def test_null_is_absent() -> None:
    """A field that is null counts as not set."""
    fields = ("model", "encoding_format", "dimensions", "user", "input_type", "truncate")
    request = parse(input="a", **dict.fromkeys(fields), embedding_type=None)[0]
    assert request.dimensions is None


def test_input_is_required() -> None:
    """A body without the field is refused with OpenAI's code."""
    error = refused(model="m")
    assert (error.param, error.code) == ("input", "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b'{"input": NaN}',
        b'{"input": Infinity}',
        b'{"input": "a", "dimensions": ' + b"9" * 10_000 + b"}",
        b'{"input": "\\ud83d"}',
        b'{"input": "\xff"}',
        b'{"input": "\xed\xa0\xbd"}',
        b'\xef\xbb\xbf{"input": "a"}',
        b'{"input": "a\x00"}',
        b"[" * 60_000,
        b'{"input": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' * 13_000,
        b'{"input": "a"} {}',
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    """A body that is not JSON is a 400 that says where the fault is."""
    with pytest.raises(InvalidRequest, match="could not parse the JSON body"):
        parse_request(body, LIMITS)


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true"])
def test_what_is_no_object(body: bytes) -> None:
    """JSON that is not an object has another error than broken JSON."""
    with pytest.raises(InvalidRequest, match="must be an object"):
        parse_request(body, LIMITS)


def test_the_request_keeps_no_texts() -> None:
    """The texts are in one object alone, so that they can be freed."""
    request, texts, _ = parse(input=["a", "b"])
    assert request.input is None
    assert texts.strings == ["a", "b"]


@pytest.mark.parametrize("filler", ["a", "\u00e4", "\u4e00", '\\"', "\U0001f389"])
def test_large_bodies(filler: str) -> None:
    """A body that is parsed in pieces means what it says: texts, options, foreign fields."""
    strings = [filler * 40_000, "short", filler * 300]
    fields = {"input": strings, "user": filler * 500, "metadata": {"x": [filler * 400]}}
    for ascii_only in (True, False):
        body = json.dumps(fields, ensure_ascii=ascii_only).encode()
        assert len(body) > SMALL_BYTES or filler == "a"
        request, texts, warnings = parse_request(body, LIMITS)
        assert texts.strings == strings
        assert request.user == filler * 500
        assert warnings == ("ignored: metadata",)


def test_faults_of_large_bodies() -> None:
    """An error of a large body has its position in the body that the caller sent."""
    body = json.dumps({"input": ["\u00e4" * 50_000]}, ensure_ascii=False).encode()
    with pytest.raises(InvalidRequest, match=r"line 2 column 3 \(char 50018\)"):
        parse_request(body + b"\n  nul", LIMITS)
    with pytest.raises(InvalidRequest, match="byte 0xff at offset 100012 is not UTF-8"):
        parse_request(body.replace(b'"]', b'\xff"]'), LIMITS)
    with pytest.raises(InvalidRequest, match="'model': expected a string, but got an array"):
        parse_request(json.dumps({"input": "a", "model": ["m" * 99_999]}).encode(), LIMITS)


def test_ids_beyond_any_vocabulary_stay_small() -> None:
    """A number far beyond any id does not become an integer of a hundred digits."""
    error = refused(input=[1e300])
    assert "a decimal number" in error.message
    assert parse(input=[2.0**63])[1].token_arrays == [[2**63]]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    ["input", "model", "dimensions", "encoding_format", "user", "truncate", "input_type", "x"]
)


@given(st.dictionaries(names, json_values, max_size=6) | json_values)
def test_any_json_is_read_or_refused(value: object) -> None:
    """Any JSON value is parsed or raises InvalidRequest."""
    try:
        request, texts, _ = parse_request(json.dumps(value).encode(), LIMITS)
    except InvalidRequest as exc:
        exc.message.encode()
    else:
        assert len(texts)
        assert request.dimensions is None or request.dimensions >= 1


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Any bytes are parsed or raise InvalidRequest."""
    try:
        parse_request(body, LIMITS)
    except InvalidRequest as exc:
        exc.message.encode()


@given(st.text())
def test_any_text_arrives(text: str) -> None:
    """Any text that UTF-8 can encode arrives unchanged."""
    body = json.dumps({"input": text}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidRequest):
            parse_request(body, LIMITS)
    else:
        assert parse_request(body, LIMITS)[1].strings == [text]
