"""The wire types of OpenAI's embeddings API, and reading a body into the service's words.

Types are strict: no string becomes a number, no `true` a 1. As in JSON Schema, 80.0 is an
integer. `null` for an optional field means "absent". Fields of other servers are settled by the
table in `fields`.

Source: openai/openai-openapi, `openapi.yaml`, CreateEmbeddingRequest and -Response.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from matryo.core.errors import InvalidRequest
from matryo.http.openai.fields import UnknownFields, check_count, settle, warning_of
from matryo.service.limits import RequestLimits
from matryo.service.request import EmbeddingType, Options, Texts

EncodingFormat = Literal["float", "base64"]


def _whole(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """A decimal number without decimals as an integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Size = Annotated[int, Field(ge=1), BeforeValidator(_whole)]


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input: Annotated[
        Any,
        Field(
            description="The text to embed, or a list of up to 2048 texts, none of them empty; or "
            "the same as token ids of cl100k_base (MATRYO_TOKEN_INPUT=model: the model's own)."
        ),
    ]
    model: Annotated[
        str | None,
        Field(
            description="A served model or an alias; absent: the server's default. A suffix "
            "-query, -document or -passage chooses the input type.",
            min_length=1,
        ),
    ] = None
    encoding_format: Annotated[
        EncodingFormat | None,
        Field(description="float (default) or base64, the raw little-endian values."),
    ] = None
    dimensions: Annotated[
        _Size | None,
        Field(description="Size of the vectors: the first so many components, normalised again."),
    ] = None
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None
    input_type: Annotated[
        str | None,
        Field(
            description="Extension. What the texts are for; chooses the prefix the model was "
            "trained with. A text that already begins with one is left as it is."
        ),
    ] = None
    truncate: Annotated[
        bool | Literal["END", "NONE"] | None,
        Field(
            description="Extension. true or END: cut texts over the model's limit, and say so in "
            "x-matryo-truncated; false or NONE (default): refuse them."
        ),
    ] = None
    embedding_type: Annotated[
        EmbeddingType | None,
        Field(
            description="Extension. int8, uint8: components times 127·√D/6, rounded; binary, "
            "ubinary: signs, eight to a byte. In base64 the raw bytes of that type, which "
            "OpenAI's SDKs would read as float32: send encoding_format float with them."
        ),
    ] = None


_OWN = tuple(EmbeddingRequest.model_fields)


class Embedding(BaseModel):
    """One vector of a response."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of a request, prefixes and special tokens included, padding not."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The answer of `POST /v1/embeddings`; `data` is in input order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]


class ErrorBody(BaseModel):
    """OpenAI's error; `param` and `code` may be null."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The answer of every 4xx and 5xx."""

    error: ErrorBody


def parse_request(
    body: bytes, limits: RequestLimits, unknown: UnknownFields = "warn"
) -> tuple[EmbeddingRequest, Texts, tuple[str, ...]]:
    """The fields and the texts of a body, and warnings about fields that were ignored.

    Args:
        body: JSON in UTF-8.
        limits: how many texts there may be.
        unknown: what becomes of fields that nobody knows; see `fields`.

    Raises:
        InvalidRequest: not JSON, or not what `EmbeddingRequest` describes.
        TooManyTexts: more texts than the limit.
    """
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {_why(body, exc)}. (HINT: send one "
            "JSON object in UTF-8, without NaN, Infinity or lone surrogates such as \\ud83d.)"
        ) from exc
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"The JSON body must be an object, but got {_kind(data)}. "
            'Send {"input": "..."} at least.'
        )
    given = cast("dict[str, Any]", data)
    check_count(given, _OWN)
    fields, ignored = settle(given, _OWN, unknown)
    try:
        request = EmbeddingRequest.model_validate(fields)
    except ValidationError as exc:
        raise _translate(exc) from exc
    return request, _parse_input(request.input, limits), warning_of(ignored)


_MARKS = {
    b"\xef\xbb\xbf": "a byte order mark of UTF-8; send the body without it",
    b"\xff\xfe": "UTF-16; send UTF-8",
    b"\xfe\xff": "UTF-16; send UTF-8",
}


def _why(body: bytes, exc: orjson.JSONDecodeError) -> str:
    """What is wrong with a body, and where, in a caller's words."""
    for mark, meaning in _MARKS.items():
        if body.startswith(mark):
            return f"it begins with {meaning}"
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as fault:
        found = f"byte 0x{body[fault.start]:02x} at offset {fault.start} is not UTF-8"
        return f"{found} (is the body in Latin-1 or Windows-1252?)"
    return str(exc)


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
        raise _invalid_type("input", "a string or an array", value)
    items = cast("list[Any]", value)
    if not items:
        raise _empty_array("input")
    # One pass in C over the items, where a loop would test each in Python.
    kinds = set(map(type, items))
    if float in kinds:
        items = [_whole(item) for item in items]
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
        raise _invalid_type("input[0]", "a string, an integer or an array of integers", items[0])
    index = next(i for i, item in enumerate(items) if type(item) is not first)
    raise _invalid_type(f"input[{index}]", f"{names[first]}, as 'input[0]' is", items[index])


def _several_texts(items: list[str]) -> Texts:
    if "" in items:
        index = items.index("")
        raise InvalidRequest(
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
            ids[:] = [_whole(token) for token in ids]
        if set(map(type, ids)) != {int}:
            j = next(j for j, token in enumerate(ids) if type(token) is not int)
            raise _invalid_type(f"input[{i}][{j}]", "an integer", ids[j])
    return Texts(token_arrays=items)


def _empty_array(name: str) -> InvalidRequest:
    return InvalidRequest(
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
            return InvalidRequest(
                f"Missing required parameter: '{field}'.",
                param=field,
                code="missing_required_parameter",
            )
        case "literal_error" | "bool_type" if isinstance(value, str):
            # `truncate` is both a boolean and a literal; the first of its faults is the boolean's.
            expected = context.get("expected", "true, false, 'END' or 'NONE'")
            return InvalidRequest(
                f"Invalid value for '{field}': {_quote(value)}. Supported values are: {expected}.",
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
            return _invalid_type(field, _EXPECTED.get(field, "a string"), value)


_EXPECTED = {
    "dimensions": "an integer",
    "truncate": "a boolean, 'END' or 'NONE'",
}


def _invalid_type(field: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{field}': expected {expected}, but got {_kind(value)} instead.",
        param=field.partition("[")[0],
        code="invalid_type",
    )


def _kind(value: object) -> str:
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


def _quote(text: str, most: int = 64) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")
