"""Maps exceptions to HTTP answers: status, error type, and headers.

Every 4xx and 5xx answer has OpenAI's body, `{"error": {message, type, param, code}}`, or, on TEI's
routes, TEI's body, `{"error", "error_type"}`, with TEI's status, or, on Encoderfile's routes, the
message as plain text, with Encoderfile's status. This module writes them all. The cause may be a
`MatryoError`, the router or a bug. The message of a bug is only logged, never sent.

Source: text-embeddings-inference, `router/src/lib.rs`, ErrorType, and `router/src/http/server.rs`;
Encoderfile, `encoderfile/src/transport/http/error.rs`, and axum's refusals of a body.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from matryo.core import errors

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"

_MAX_PATH = 256  # characters of a caller's path in a message


@dataclass(frozen=True, slots=True)
class _Rule:
    """What becomes of an exception: OpenAI's status and type, TEI's, and Encoderfile's status."""

    status: int
    type: str = INVALID
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    tei: tuple[int, str] = (422, "Validation")
    plain: int = 422


_CLOSE = {"connection": "close"}
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients obey the header whatever the status
# The rule of an exception is that of its class, or of the nearest base class that has a rule.
_RULES: dict[type[BaseException], _Rule] = {
    errors.RequestError: _Rule(400),
    errors.EmptyInput: _Rule(400, tei=(400, "Empty")),
    errors.NotJson: _Rule(400, tei=(400, "Validation"), plain=400),
    errors.TooManyTokens: _Rule(400, "max_tokens_per_request"),
    errors.Unauthorized: _Rule(
        401,
        headers={"www-authenticate": 'Bearer realm="Matryo API"'},
        tei=(401, "Validation"),
        plain=401,
    ),
    errors.UnknownModel: _Rule(404),
    errors.ModelForbidden: _Rule(403, tei=(403, "Validation"), plain=403),
    errors.BatchOff: _Rule(404),
    errors.UnknownFile: _Rule(404),
    errors.UnknownBatch: _Rule(404),
    errors.BatchConflict: _Rule(409, headers=_NO_RETRY),
    errors.BodyTimeout: _Rule(408, headers=_CLOSE | _NO_RETRY, tei=(408, "Validation"), plain=408),
    errors.DeadlinePassed: _Rule(408, tei=(408, "Validation"), plain=408),
    errors.BodyTooLarge: _Rule(413, tei=(413, "Validation"), plain=413),
    errors.FileTooLarge: _Rule(413),
    errors.RangeNotSatisfiable: _Rule(416),
    errors.FingerprintMismatch: _Rule(412, tei=(412, "Validation"), plain=412),
    errors.UnsupportedMedia: _Rule(415, tei=(415, "Validation"), plain=415),
    errors.Overloaded: _Rule(429, "tokens", tei=(429, "Overloaded"), plain=429),
    errors.RequestRateReached: _Rule(429, "requests", tei=(429, "Overloaded"), plain=429),
    errors.LimitReached: _Rule(429, "tokens", tei=(429, "Overloaded"), plain=429),
    errors.QuotaReached: _Rule(429, "insufficient_quota", tei=(429, "Overloaded"), plain=429),
    errors.StorageQuotaReached: _Rule(429, "insufficient_quota"),
    errors.StorageFull: _Rule(507, "server_error", _NO_RETRY),
    errors.StorageUnavailable: _Rule(503, "service_unavailable_error"),
    errors.NotReady: _Rule(503, "service_unavailable_error", _CLOSE, (503, "Unhealthy"), 503),
    errors.EngineError: _Rule(500, "server_error", tei=(424, "Backend"), plain=500),
    Exception: _Rule(500, "server_error", tei=(500, "Backend"), plain=500),
}

_TEI_PATHS = frozenset({"/embed", "/info", "/tokenize", "/decode"})
_PLAIN_PATHS = frozenset({"/predict", "/model"})


def error_response(exc: BaseException, request_id: str, *, method: str, path: str) -> Response:
    """The answer to a request that raised an exception.

    Args:
        exc: the exception.
        request_id: id of the request. A 500 quotes it, because only the log has the cause.
        method: method of the request, for the messages of 404 and 405.
        path: path of the request, likewise.
    """
    if isinstance(exc, HTTPException):  # raised by the router
        answer = _from_router(exc, method, path)
        tei, plain = (answer.status_code, "Validation"), answer.status_code
    else:
        answer, rule = error_answer(exc, request_id), _rule_of(exc)
        tei, plain = rule.tei, rule.plain
    if path in _TEI_PATHS or (method, path) == ("POST", "/"):
        return _as_tei(answer, path, *tei)
    return _as_plain(answer, path, plain) if path in _PLAIN_PATHS else answer


def error_answer(exc: BaseException, request_id: str = "") -> Response:
    """The answer to a request that is refused, or that failed, with OpenAI's error object."""
    rule = _rule_of(exc)
    headers = dict(rule.headers)
    if not isinstance(exc, errors.RequestError | errors.CapacityError):
        message = (
            "The server had an error while processing your request. Please try again; if the error "
            f"comes back, send this request id to the operator: {request_id}"
        )
        return body(rule.status, message, type_=rule.type, headers=headers)
    if isinstance(exc, errors.LimitReached):
        headers |= _retry(exc)
    elif isinstance(exc, errors.CapacityError):
        headers["retry-after"] = str(exc.retry_after_s)
    elif isinstance(exc, errors.RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{exc.n_bytes}"
    param = code = None
    if isinstance(exc, errors.RequestError):
        param, code = exc.param, exc.code
    elif isinstance(exc, errors.LimitReached):
        code = exc.code
    elif isinstance(exc, errors.Overloaded):
        code = "rate_limit_exceeded"
    return body(rule.status, exc.message, type_=rule.type, param=param, code=code, headers=headers)


def _retry(exc: errors.LimitReached) -> dict[str, str]:
    """When a client may send a request again, in the headers that OpenAI's clients read."""
    headers = {} if exc.is_worth_retrying else {"x-should-retry": "false"}
    if exc.retry_after_ms is not None:
        headers["retry-after"] = str(exc.retry_after_s)
        headers["retry-after-ms"] = str(exc.retry_after_ms)
    return headers


def _rule_of(exc: BaseException) -> _Rule:
    return next(_RULES[base] for base in type(exc).__mro__ if base in _RULES)


def _as_tei(answer: Response, path: str, status: int, error_type: str = "Validation") -> Response:
    """An answer with TEI's error and status in place of OpenAI's."""
    content = orjson.dumps({"error": _words(answer, path), "error_type": error_type})
    return Response(content, status, _headers(answer))


def _as_plain(answer: Response, path: str, status: int) -> Response:
    """An answer with the message alone, and Encoderfile's status."""
    headers = _headers(answer) | {"content-type": "text/plain; charset=utf-8"}
    return Response(_words(answer, path).encode(), status, headers)


def _words(answer: Response, path: str) -> str:
    """The message of an answer, with the names that fields have on another server's route."""
    message: str = orjson.loads(answer.body)["error"]["message"]
    texts = "ids" if path == "/decode" else "inputs"
    for ours, theirs in (("'input_type'", "prompt_name"), ("'input'", texts), ("'input[", texts)):
        message = message.replace(ours, f"'{theirs}{ours[-1]}")
    return message


def _headers(answer: Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "content-length"}


def _from_router(exc: HTTPException, method: str, path: str) -> Response:
    """The answer to an exception of the router, in OpenAI's words."""
    headers = dict(exc.headers or {})
    match exc.status_code:
        case 404:
            return body(
                404, f"Invalid URL ({method} {shown_path(path)}){_hint(path)}", code="unknown_url"
            )
        case 405:
            allowed = headers.get("Allow", "another one")
            return body(
                405,
                f"Not allowed to {method} on {shown_path(path)}. (HINT: Perhaps you meant to use a "
                f"different HTTP method? Allowed: {allowed}.)",
                code="method_not_supported",
                headers=headers,
            )
        case status:
            return body(status, str(exc.detail), headers=headers)


_ROUTES = {
    "embeddings": "/v1/embeddings",
    "models": "/v1/models",
    "files": "/v1/files",
    "batches": "/v1/batches",
    "embed": "/embed",
    "info": "/info",
    "tokenize": "/tokenize",
    "decode": "/decode",
    "predict": "/predict",
    "livez": "/livez",
    "readyz": "/readyz",
    "health": "/health",
    "metrics": "/metrics",
    "docs": "/docs",
    "openapi.json": "/openapi.json",
}


def _hint(path: str) -> str:
    """The route that a path is near to, by its last part: `/v1/v1/embeddings`, `/models/`."""
    parts = [part for part in path[:_MAX_PATH].lower().split("/") if part]
    if path in _ROUTES.values():  # on another port
        return ""
    near = difflib.get_close_matches(parts[-1], _ROUTES, n=1, cutoff=0.75) if parts else []
    if not near and "models" in parts:
        near = ["models"]
    return f". Did you mean {_ROUTES[near[0]]}?" if near else ""


def shown_path(path: str) -> str:
    """A caller's path for a message or a log line: cut to 256 characters, without surrogates."""
    return _utf8(path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}...")


def body(
    status: int,
    message: str,
    *,
    type_: str = INVALID,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer with OpenAI's error object."""
    error = {"message": _utf8(message), "type": type_, "param": param, "code": code}
    return Response(
        orjson.dumps({"error": error}),
        status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def _utf8(text: str) -> str:
    """`text` with a question mark for each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
