"""From a body of TEI's to the service's words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from matryo.core.errors import EmptyInput, InvalidRequest
from matryo.http.openai.fields import UnknownFields, check_count, warning_of
from matryo.http.openai.parsing import loads
from matryo.http.openai.tally import Tally
from matryo.http.openai.wire import whole
from matryo.http.tei.wire import EmbedRequest
from matryo.service.limits import RequestLimits
from matryo.service.request import Options, Texts

R = TypeVar("R", bound=BaseModel)

_NEAR = 0.85
_SHOWN = 64


def parse(
    kind: type[R],
    texts_field: str,
    body: bytes | bytearray,
    limits: RequestLimits,
    unknown: UnknownFields,
    tally: Tally | None,
    *,
    takes_ids: bool = True,
) -> tuple[R, Texts, tuple[str, ...]]:
    """The fields and the texts of a body, and warnings about fields that were ignored.

    The fields that are returned have no texts. Call this on a thread if `tally` is given.

    Args:
        kind: what the body describes.
        texts_field: the field with the texts.
        body: JSON in UTF-8.
        limits: of a request.
        unknown: what becomes of fields that nobody knows.
        tally: has counted the whole body; None to count the body here.
        takes_ids: whether the texts may come as token ids.

    Raises:
        NotJson: the body is not JSON.
        EmptyInput: no text, or an empty one.
        InvalidRequest: not what `kind` describes.
        TooManyTexts: more texts than the limit.
    """
    data = loads(body, limits, tally)
    del body
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"The JSON body must be an object with the field '{texts_field}', and is none."
        )
    given = cast("dict[str, Any]", data)
    own = tuple(kind.model_fields)
    check_count(given, own)
    ignored = _foreign(given, own, unknown)
    if given.get(texts_field) is None:
        raise InvalidRequest(
            f"Missing required parameter: '{texts_field}'.",
            param=texts_field,
            code="missing_required_parameter",
        )
    value = given[texts_field]
    try:
        request = kind.model_validate(given | {texts_field: None})
    except ValidationError as exc:
        raise _translate(exc) from exc
    texts = _texts(value, texts_field, limits)
    if texts.own_ids and not takes_ids:
        raise InvalidRequest(
            f"Invalid type for '{texts_field}': expected a string or a list of strings, but got "
            "token ids. Send strings.",
            param=texts_field,
            code="invalid_type",
        )
    return request, texts, warning_of(ignored)


def options_of(request: EmbedRequest, deadline_s: float | None) -> Options:
    """What a body asks for, in the service's words. Texts are cut unless the body refuses that."""
    left = (request.truncation_direction or "Right").lower() == "left"
    return Options(
        input_type=request.prompt_name,
        dimensions=request.dimensions,
        truncate=request.truncate is not False,
        keep="end" if left else "start",
        normalize=request.normalize is not False,
        deadline_s=deadline_s,
    )


def _foreign(
    given: Mapping[str, Any], own: Sequence[str], unknown: UnknownFields
) -> tuple[str, ...]:
    """Names of fields that TEI's API does not have, and that are ignored.

    Raises:
        InvalidRequest: a name near one of TEI's, or any such name where the operator chose so.
    """
    foreign = tuple(name for name, value in given.items() if name not in own and value is not None)
    for name in foreign:
        near = difflib.get_close_matches(name[:_SHOWN].lower(), own, n=1, cutoff=_NEAR)
        if near or unknown == "refuse":
            hint = f"did you mean '{near[0]}'?" if near else "nothing here knows it"
            raise InvalidRequest(
                f"Unrecognized request argument supplied: {name[:_SHOWN]!a} ({hint}). "
                f"Leave it out. Known are: {', '.join(own)}.",
                code="unsupported_parameter",
            )
    return foreign


def _texts(value: Any, field: str, limits: RequestLimits) -> Texts:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, str) and field == "inputs":
        items, is_list = [value], False
    elif isinstance(value, list):
        items, is_list = cast("list[Any]", value), True
        if items and all(type(whole(item)) is int for item in items):
            items, is_list = [items], False
    else:
        raise _wrong(field)
    if not items:
        raise EmptyInput(f"`{field}` cannot be empty", param=field, code="empty_array")
    limits.check_texts(len(items))
    if not all(isinstance(item, str | list) for item in items):
        raise _wrong(field)
    for index, item in enumerate(items):
        if not item:
            name = f"{field}[{index}]" if is_list else field
            raise EmptyInput(
                f"`{field}` cannot be empty: '{name}' is. Leave empty texts out.",
                param=field,
                code="empty_string",
            )
    if field == "inputs" and all(isinstance(item, str) for item in items):
        return Texts(cast("list[str]", items), is_list=is_list)
    return Texts(token_arrays=[_ids(item, field) for item in items], is_list=is_list, own_ids=True)


def _ids(item: Any, field: str) -> list[int]:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(item, list):
        raise _wrong(field)
    ids = [whole(token) for token in cast("list[Any]", item)]
    if set(map(type, ids)) != {int}:
        raise _wrong(field)
    return ids


def _wrong(field: str) -> InvalidRequest:
    forms = {
        "inputs": "a string, a list of strings, or the same as arrays of token ids",
        "ids": "an array of token ids, or a list of such arrays",
    }
    return InvalidRequest(
        f"Invalid type for '{field}': expected {forms[field]}. Send one of these forms.",
        param=field,
        code="invalid_type",
    )


def _translate(exc: ValidationError) -> InvalidRequest:
    """The first fault in a sentence."""
    error = exc.errors(include_url=False, include_input=False)[0]
    field = str(error["loc"][0])
    return InvalidRequest(
        f"Invalid value for '{field}': {error['msg'][:200]}. Correct the field, or leave it out.",
        param=field,
        code="invalid_value",
    )
