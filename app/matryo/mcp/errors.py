"""The words of an error of a tool: those of the HTTP door. The only place that writes them.

The SDK's own errors, of its protocol, are no part of this.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from matryo.core.errors import (
    CapacityError,
    DeadlinePassed,
    InvalidRequest,
    ModelForbidden,
    NotReady,
    RequestError,
    UnknownModel,
)

_MOST_NAME = 64  # characters of an argument's name


def words_of(exc: Exception, request_id: str) -> str:
    """What the assistant reads in place of a result.

    Args:
        exc: what a call raised.
        request_id: of the call. A fault of the server quotes it, because only the log has the
            cause.
    """
    if isinstance(exc, RequestError | CapacityError):
        return exc.message.replace("'input'", "'texts'").replace("'input[", "'texts[")
    return (
        "The server had an error while processing your request. Please try again; if the error "
        f"comes back, send this request id to the operator: {request_id}"
    )


# The status of an exception is that of its class, or of the nearest base class that has one.
_STATUSES: dict[type[BaseException], int] = {
    RequestError: 400,
    ModelForbidden: 403,
    UnknownModel: 404,
    DeadlinePassed: 408,
    CapacityError: 429,
    NotReady: 503,
    Exception: 500,
    BaseException: 499,  # the client has cancelled the call
}


def status_of(exc: BaseException) -> int:
    """The status that HTTP has for what a call raised; only metrics show it."""
    return next(_STATUSES[base] for base in type(exc).__mro__ if base in _STATUSES)


def invalid(exc: ValidationError) -> InvalidRequest:
    """The first fault of a tool's arguments, in a sentence."""
    error = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    name = _name(error["loc"])
    if error["type"] == "missing":
        return InvalidRequest(f"Missing required argument: '{name}'.")
    if error["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown argument: '{name}'. Leave it out.")
    return InvalidRequest(
        f"Invalid value for '{name}': {error['msg'][:200]}. Correct the argument."
    )


def _name(loc: tuple[Any, ...]) -> str:
    """`texts[3]` for the item 3 of `texts`."""
    first, *rest = loc
    indexes = "".join(f"[{part}]" for part in rest if isinstance(part, int))
    return ascii(str(first)[:_MOST_NAME])[1:-1] + indexes
