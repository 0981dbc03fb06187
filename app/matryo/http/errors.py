"""The only table from exceptions to HTTP: statuses, OpenAI's types, headers.

Every 4xx and 5xx has OpenAI's body, `{"error": {message, type, param, code}}`, from this
module, whoever raised: our code, the router, or a bug. A bug's own words stay in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from matryo.core import errors

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class _Rule:
    status: int
    type: str = INVALID
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


_CLOSE = {"connection": "close"}
# Looked up along the class's ancestors, most special first.
_RULES: dict[type[BaseException], _Rule] = {
    errors.RequestError: _Rule(400),
    errors.TooManyTokens: _Rule(400, "max_tokens_per_request"),
    errors.Unauthorized: _Rule(401, headers={"www-authenticate": 'Bearer realm="Matryo API"'}),
    errors.UnknownModel: _Rule(404),
    errors.BodyTimeout: _Rule(408, headers=_CLOSE | {"x-should-retry": "false"}),
    errors.DeadlinePassed: _Rule(408),
    errors.BodyTooLarge: _Rule(413),
    errors.UnsupportedMedia: _Rule(415),
    errors.Overloaded: _Rule(429, "tokens"),
    errors.NotReady: _Rule(503, "service_unavailable_error", _CLOSE),
}


def error_response(exc: BaseException, request_id: str, *, method: str, path: str) -> Response:
    """The answer to a request that raised.

    Args:
        exc: what it raised.
        request_id: quoted in a 500, whose cause only the log tells.
        method: of the request, for 404 and 405.
        path: likewise.
    """
    if isinstance(exc, HTTPException):  # the router's
        return _from_router(exc, method, path)
    rule = next((_RULES[kind] for kind in type(exc).__mro__ if kind in _RULES), None)
    if rule is None or not isinstance(exc, errors.MatryoError):
        return body(
            500,
            "The server had an error while processing your request. Please try again, and if it "
            f"stays, tell the operator this id: {request_id}",
            type_="server_error",
        )
    headers = dict(rule.headers)
    if isinstance(exc, errors.CapacityError):
        headers["retry-after"] = str(exc.retry_after_s)
    param = code = None
    if isinstance(exc, errors.RequestError):
        param, code = exc.param, exc.code
    elif isinstance(exc, errors.Overloaded):
        code = "rate_limit_exceeded"
    return body(
        rule.status,
        exc.message,
        type_=rule.type,
        param=param,
        code=code,
        headers=headers,
    )


def _from_router(exc: HTTPException, method: str, path: str) -> Response:
    headers = dict(exc.headers or {})
    match exc.status_code:
        case 404:
            return body(404, f"Invalid URL ({method} {path})", code="unknown_url")
        case 405:
            allowed = headers.get("Allow", "another one")
            return body(
                405,
                f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different "
                f"HTTP method? Allowed: {allowed}.)",
                code="method_not_supported",
                headers=headers,
            )
        case status:
            return body(status, str(exc.detail), headers=headers)


def body(
    status: int,
    message: str,
    *,
    type_: str = INVALID,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One error in OpenAI's shape."""
    error = {"message": _utf8(message), "type": type_, "param": param, "code": code}
    return Response(
        orjson.dumps({"error": error}),
        status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def _utf8(text: str) -> str:
    """Text that UTF-8 can write: a path or a key may carry stray surrogates."""
    return text.encode("utf-8", "replace").decode()
