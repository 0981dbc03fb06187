"""From requests of the Batch API to checked values, and faults in OpenAI's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import ValidationError
from starlette.requests import Request

from matryo.batch.objects import Order
from matryo.core.errors import InvalidRequest
from matryo.http.openai.batch_wire import LEAST_LIFE_S, MOST_LIFE_S, BatchRequest
from matryo.http.openai.fields import UnknownFields, warning_of
from matryo.http.openai.multipart import FORM_PARTS
from matryo.http.openai.parsing import (
    invalid_type,
    kind_of,
    loads,
    missing_parameter,
    quoted,
)
from matryo.service.limits import RequestLimits

MOST_BATCH_BYTES = 64 * 1024
"""Most bytes of the body of a new batch, which names a file and has no texts."""

_OWN = tuple(BatchRequest.model_fields)
_MOST_SHOWN = 8  # names of unknown fields in a message
_MOST_DIGITS = 18
_NO_LIMITS = RequestLimits()

T = TypeVar("T", bound=str)


def parse_batch(
    body: bytes | bytearray, unknown: UnknownFields
) -> tuple[BatchRequest, tuple[str, ...]]:
    """The fields of a body, and warnings about fields that were ignored.

    Args:
        body: JSON in UTF-8.
        unknown: what becomes of fields that nobody knows.

    Raises:
        InvalidRequest: not JSON, too large, or not what `BatchRequest` describes.
    """
    if len(body) > MOST_BATCH_BYTES:
        raise InvalidRequest(
            f"The body has {len(body)} bytes, and that of a batch has at most {MOST_BATCH_BYTES}. "
            "Upload the lines as a file, and send the file's id as 'input_file_id'."
        )
    data = loads(body, _NO_LIMITS)
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"The JSON body must be an object, but got {kind_of(data)}. Send 'input_file_id', "
            "'endpoint' and 'completion_window'."
        )
    given = cast("dict[str, Any]", data)
    fields = {name: value for name, value in given.items() if name in _OWN}
    warnings = unknown_names(
        [name for name in given if name not in _OWN and given[name] is not None], _OWN, unknown
    )
    try:
        request = BatchRequest.model_validate(fields)
    except ValidationError as exc:
        raise _translate(exc) from exc
    if not request.input_file_id.startswith("file-"):
        raise InvalidRequest(
            f"Invalid 'input_file_id': {quoted(request.input_file_id)}. Expected an ID that begins "
            "with 'file'.",
            param="input_file_id",
            code="invalid_value",
        )
    for key, value in (request.metadata or {}).items():
        if "\0" in key + value:
            raise InvalidRequest(
                f"Invalid 'metadata': the pair with the key {quoted(key)} has the character "
                "U+0000, which databases do not store. Leave the character out.",
                param=f"metadata.{key}",
                code="invalid_value",
            )
    return request, warnings


def unknown_names(
    names: Sequence[str], own: Sequence[str], unknown: UnknownFields
) -> tuple[str, ...]:
    """Warnings about fields that nobody knows.

    Raises:
        InvalidRequest: there are such fields, and the operator has them refused.
    """
    if names and unknown == "refuse":
        shown = ", ".join(quoted(name) for name in names[:_MOST_SHOWN])
        raise InvalidRequest(
            f"Unrecognized request argument supplied: {shown}. Leave it out. Known are: "
            f"{', '.join(own)}.",
            code="unsupported_parameter",
        )
    return warning_of(names)


def check_purpose(purpose: str) -> None:
    """Refuse a file that is for something else than a batch.

    Raises:
        InvalidRequest: the purpose is another one.
    """
    one_of("purpose", purpose, ("batch",))


def life_of(fields: dict[str, str]) -> int | None:
    """Seconds that a form wants its file to live; None if the form does not say.

    Raises:
        InvalidRequest: the policy has no anchor or no seconds, or wrong ones.
    """
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if "expires_after" in fields:
        raise InvalidRequest(
            "Invalid type for 'expires_after': expected an object, but got a string instead. Send "
            "the parts 'expires_after[anchor]' and 'expires_after[seconds]'.",
            param="expires_after",
            code="invalid_type",
        )
    if anchor is None and seconds is None:
        return None
    if anchor is None or seconds is None:
        raise missing_parameter(f"expires_after.{'anchor' if anchor is None else 'seconds'}")
    one_of("expires_after.anchor", anchor, ("created_at",))
    return _integer("expires_after.seconds", seconds, LEAST_LIFE_S, MOST_LIFE_S)


def form_warnings(fields: dict[str, str], unknown: UnknownFields) -> tuple[str, ...]:
    """Warnings about the fields of a form that were ignored; see `unknown_names`."""
    return unknown_names([name for name in fields if name not in FORM_PARTS], FORM_PARTS, unknown)


def limit_of(request: Request, default: int, most: int) -> int:
    """How many items a page may have, by the query of a request.

    Raises:
        InvalidRequest: no integer, or out of bounds.
    """
    text = request.query_params.get("limit")
    return default if text is None else _integer("limit", text, 1, most)


def order_of(request: Request) -> Order:
    """The order of a list, by the query of a request.

    Raises:
        InvalidRequest: a word that names no order.
    """
    return one_of("order", request.query_params.get("order", "desc"), get_args(Order))


def one_of(name: str, value: str, allowed: tuple[T, ...]) -> T:
    """The value, which is one of those that are allowed.

    Raises:
        InvalidRequest: the value is another one.
    """
    for one in allowed:
        if value == one:
            return one
    words = " and ".join(map(repr, allowed))
    raise InvalidRequest(
        f"Invalid value for '{name}': {quoted(value)}. Supported values are: {words}.",
        param=name,
        code="invalid_value",
    )


def _integer(name: str, text: str, least: int, most: int) -> int:
    digits = text.strip()
    if not (digits.removeprefix("-").isdecimal() and digits.isascii()):
        raise invalid_type(name, "an integer", text)
    if len(digits) > _MOST_DIGITS:
        digits = digits[:_MOST_DIGITS]
    number = int(digits)
    if not least <= number <= most:
        raise _out_of_bounds(name, number, "ge" if number < least else "le", least, most)
    return number


def _out_of_bounds(
    name: str, number: object, side: Literal["ge", "le"], least: int, most: int
) -> InvalidRequest:
    below = side == "ge"
    bound = f">= {least}" if below else f"<= {most}"
    return InvalidRequest(
        f"Invalid '{name}': integer {'below minimum' if below else 'above maximum'} value. "
        f"Expected a value {bound}, but got {number} instead.",
        param=name,
        code=f"integer_{'below_min' if below else 'above_max'}_value",
    )


def _translate(exc: ValidationError) -> InvalidRequest:
    """The first fault in OpenAI's words."""
    error = exc.errors(include_url=False)[0]
    path = [str(one)[:64] for one in error["loc"] if one != "[key]"]
    name = ".".join(path).encode("utf-8", "replace").decode()
    value: Any = error["input"]
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return missing_parameter(name)
        case "extra_forbidden":
            return InvalidRequest(
                f"Unrecognized request argument supplied: '{name}'. Leave it out.",
                code="unsupported_parameter",
            )
        case "literal_error" if isinstance(value, str):
            return InvalidRequest(
                f"Invalid value for '{name}': {quoted(value)}. Supported values are: "
                f"{context['expected']}.",
                param=name,
                code="invalid_value",
            )
        case "greater_than_equal":
            return _out_of_bounds(name, value, "ge", LEAST_LIFE_S, MOST_LIFE_S)
        case "less_than_equal":
            return _out_of_bounds(name, value, "le", LEAST_LIFE_S, MOST_LIFE_S)
        case "string_too_long":
            what = "key" if "[key]" in error["loc"] else "string"
            most = context["max_length"]
            return InvalidRequest(
                f"Invalid '{name}': {what} too long. Expected a {what} with maximum length {most}, "
                f"but got one with length {len(value)} instead.",
                param=name,
                code="string_above_max_length",
            )
        case "too_long":
            most, actual = context["max_length"], context["actual_length"]
            return InvalidRequest(
                f"Invalid '{name}': too many properties. Expected an object with at most {most} "
                f"properties, but got {actual} properties instead.",
                param=name,
                code="object_above_max_properties",
            )
        case _:
            return invalid_type(name, _EXPECTED.get(name, "a string"), value)


_EXPECTED = {
    "metadata": "an object of strings",
    "output_expires_after": "an object",
    "output_expires_after.seconds": "an integer",
}
