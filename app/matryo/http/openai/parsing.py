"""From a body to the service's words: JSON, fields, texts, and faults in OpenAI's words."""

from __future__ import annotations

import codecs
from typing import Any, cast

import orjson
from pydantic import ValidationError

from matryo.core.errors import EmptyInput, InvalidRequest, NotJson, RequestError
from matryo.http.openai import json_pieces
from matryo.http.openai.fields import UnknownFields, check_count, settle, warning_of
from matryo.http.openai.tally import SMALL_BYTES, Tally
from matryo.http.openai.wire import EmbeddingRequest, whole
from matryo.service.limits import RequestLimits
from matryo.service.request import Options, Texts

_OWN = tuple(EmbeddingRequest.model_fields)

Parsed = tuple[EmbeddingRequest, Texts, tuple[str, ...]]
"""What `parse_request` returns."""


def parse_request(
    body: bytes | bytearray,
    limits: RequestLimits,
    unknown: UnknownFields = "warn",
    tally: Tally | None = None,
) -> Parsed:
    """The fields and the texts of a body, and warnings about fields that were ignored.

    The fields that are returned have no texts: `input` is None. Call this on a thread if the body
    has more than `SMALL_BYTES`.

    Args:
        body: JSON in UTF-8.
        limits: of a request.
        unknown: what becomes of fields that nobody knows; see `fields`.
        tally: has counted the whole body; None to count the body here.

    Raises:
        InvalidRequest: not JSON, or not what `EmbeddingRequest` describes.
        TooManyTexts: more texts than the limit.
        TooManyTokens: far more ids than the limit.
    """
    data = loads(body, limits, tally)
    del body  # the caller may have given up the last other reference to the body
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"The JSON body must be an object, but got {kind_of(data)}. "
            'Send {"input": "..."} at least.'
        )
    given = cast("dict[str, Any]", data)
    check_count(given, _OWN)
    fields, ignored = settle(given, _OWN, unknown)
    value = fields.get("input")
    if "input" in fields:
        fields["input"] = None
    try:
        try:
            request = EmbeddingRequest.model_validate(fields)
        except ValidationError as exc:
            raise _translate(exc) from exc
        return request, _parse_input(value, limits), warning_of(ignored)
    except RequestError as exc:
        name = fields.get("model", "")
        exc.model = name if isinstance(name, str) else None
        raise


def loads(body: bytes | bytearray, limits: RequestLimits, tally: Tally | None = None) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The value of a body; a body that is large is counted first, and parsed in pieces.

    Raises:
        NotJson: the body is not JSON.
        InvalidRequest: the body holds too much of something.
    """
    try:
        if len(body) <= SMALL_BYTES:
            return orjson.loads(body)
        if tally is None:
            tally = Tally(limits)
            tally.feed(body)
        return json_pieces.loads(body, tally.finish())
    except (orjson.JSONDecodeError, json_pieces.NotJson) as exc:
        raise NotJson(
            f"We could not parse the JSON body of your request: {_why(body, exc)}. (HINT: send one "
            "JSON object in UTF-8, without NaN, Infinity or lone surrogates such as \\ud83d.)"
        ) from exc


_MARKS = {
    b"\xef\xbb\xbf": "a byte order mark of UTF-8; send the body without it",
    b"\xff\xfe": "UTF-16; send UTF-8",
    b"\xfe\xff": "UTF-16; send UTF-8",
}


def _why(body: bytes | bytearray, exc: Exception) -> str:
    """What is wrong with a body, and where, in a caller's words."""
    for mark, meaning in _MARKS.items():
        if body.startswith(mark):
            return f"it begins with {meaning}"
    offset = _not_utf8(body)
    if offset is not None:
        found = f"byte 0x{body[offset]:02x} at offset {offset} is not UTF-8"
        return f"{found} (is the body in Latin-1 or Windows-1252?)"
    return str(exc)


def _not_utf8(body: bytes | bytearray, step: int = 1 << 20) -> int | None:
    """The offset of the first byte that is not UTF-8, or None; found `step` bytes at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), step):
        n_kept = len(decoder.getstate()[0])  # the first bytes of a character
        try:
            decoder.decode(body[start : start + step], final=start + step >= len(body))
        except UnicodeDecodeError as fault:
            return start - n_kept + fault.start
    return None


def options_of(request: EmbeddingRequest, deadline_s: float | None) -> Options:
    """What a body asks for, in the service's words."""
    return Options(
        model=request.model,
        input_type=request.input_type,
        dimensions=request.dimensions,
        truncate=request.truncate in (True, "END"),
        embedding_type=request.embedding_type or "float",
        deadline_s=deadline_s,
    )


def _parse_input(value: Any, limits: RequestLimits) -> Texts:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, str):
        return Texts([value], is_list=False)
    if not isinstance(value, list):
        raise invalid_type("input", "a string or an array", value)
    items = cast("list[Any]", value)
    if not items:
        raise _empty_array("input")
    # One pass in C over the items, where a loop would test each in Python.
    kinds = set(map(type, items))
    if float in kinds:
        items = [whole(item) for item in items]
        kinds = set(map(type, items))
    if kinds == {int}:
        return Texts(token_arrays=[items], is_list=False)
    if kinds <= {str} or kinds <= {list}:
        limits.check_texts(len(items))
        return _several_texts(items) if kinds == {str} else _several_arrays(items)
    # The first item says what the others ought to be.
    names: dict[object, str] = {
        str: "a string",
        int: "an integer",
        list: "an array of integers",
    }
    first = cast("type[object]", type(items[0]))
    if first not in names:
        raise invalid_type("input[0]", "a string, an integer or an array of integers", items[0])
    index = next(i for i, item in enumerate(items) if type(item) is not first)
    raise invalid_type(f"input[{index}]", f"{names[first]}, as 'input[0]' is", items[index])


def _several_texts(items: list[str]) -> Texts:
    if "" in items:
        index = items.index("")
        raise EmptyInput(
            f"Invalid 'input[{index}]': empty string. Expected a string with minimum length "
            "1; leave empty texts out of the list.",
            param="input",
            code="empty_string",
        )
    return Texts(items)


def _several_arrays(items: list[list[Any]]) -> Texts:
    for i, ids in enumerate(items):
        if not ids:
            raise _empty_array(f"input[{i}]")
        if set(map(type, ids)) != {int}:
            ids[:] = [whole(token) for token in ids]
        if set(map(type, ids)) != {int}:
            j = next(j for j, token in enumerate(ids) if type(token) is not int)
            raise invalid_type(f"input[{i}][{j}]", "an integer", ids[j])
    return Texts(token_arrays=items)


def _empty_array(name: str) -> EmptyInput:
    return EmptyInput(
        f"Invalid '{name}': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
        param="input",
        code="empty_array",
    )


def _translate(exc: ValidationError) -> InvalidRequest:
    """The first fault in OpenAI's words."""
    error = exc.errors(include_url=False)[0]
    field = str(error["loc"][0]) if error["loc"] else "body"
    value: Any = error["input"]
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            known = ", ".join(EmbeddingRequest.model_fields)
            shown = field.encode("utf-8", "replace").decode()[:64]
            return InvalidRequest(
                f"Unrecognized request argument supplied: {shown}. Known are: {known}."
            )
        case "missing":
            return missing_parameter(field)
        case "literal_error" | "bool_type" if isinstance(value, str):
            # `truncate` is both a boolean and a literal; the first of its faults is the boolean's.
            expected = context.get("expected", "true, false, 'END' or 'NONE'")
            return InvalidRequest(
                f"Invalid value for '{field}': {quoted(value)}. Supported values are: {expected}.",
                param=field,
                code="invalid_value",
            )
        case "greater_than_equal":
            return InvalidRequest(
                f"Invalid value for '{field}': {value}. It must be at least {context['ge']}.",
                param=field,
                code="invalid_value",
            )
        case "string_too_short":
            return InvalidRequest(
                f"Invalid '{field}': empty string. Leave it out for the server's default.",
                param=field,
                code="empty_string",
            )
        case _:
            return invalid_type(field, _EXPECTED.get(field, "a string"), value)


_EXPECTED = {
    "dimensions": "an integer",
    "truncate": "a boolean, 'END' or 'NONE'",
}


def missing_parameter(name: str) -> InvalidRequest:
    """The error of a request without a field that it must have."""
    return InvalidRequest(
        f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
    )


def invalid_type(field: str, expected: str, value: object) -> InvalidRequest:
    """The error of a field whose value is of another type than `expected` says."""
    return InvalidRequest(
        f"Invalid type for '{field}': expected {expected}, but got {kind_of(value)} instead.",
        param=field.partition("[")[0],
        code="invalid_type",
    )


def kind_of(value: object) -> str:
    """What JSON calls a value; its content only where it is short and harmless."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def quoted(text: str, most: int = 64) -> str:
    """A caller's text for a message: in quotes, cut to `most` characters."""
    return repr(text if len(text) <= most else text[:most] + "…")
