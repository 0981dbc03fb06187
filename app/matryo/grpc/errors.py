"""Maps exceptions to gRPC's statuses: code, details and trailing metadata. The only table.

Every call that this package answers ends with a status of this table or with OK. `INTERNAL` stands
for a fault of the server alone, and its details never quote the cause. `UNKNOWN` is never sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from matryo.core import errors
from matryo.grpc.messages import make

_MOST_BYTES = 1024
"""Of details. Percent-encoded they must fit in 8 KiB of metadata, which is what clients accept."""

# The code of an exception is that of its class, or of the nearest base class that has a code.
CODES: dict[type[BaseException], grpc.StatusCode] = {
    errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.ModelForbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.FingerprintMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BodyTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.BodyTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.CallerGone: grpc.StatusCode.CANCELLED,
    BaseException: grpc.StatusCode.INTERNAL,
}

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ends that raised.

    Attributes:
        trailers: trailing metadata: when to try again.
    """

    code: grpc.StatusCode
    details: str
    trailers: Metadata = ()


def refusal(exc: BaseException, request_id: str) -> Refusal:
    """The status of a call that raised an exception.

    Args:
        exc: the exception.
        request_id: id of the call. `INTERNAL` quotes it, because only the log has the cause.
    """
    code = next(CODES[base] for base in type(exc).__mro__ if base in CODES)
    if code is grpc.StatusCode.INTERNAL or not isinstance(exc, errors.MatryoError):
        return Refusal(
            code,
            "The server had an error while processing your request. Please try again; if the "
            f"error comes back, send this request id to the operator: {request_id}",
        )
    details = exc.message.encode("utf-8", "replace")[:_MOST_BYTES].decode("utf-8", "ignore")
    if not isinstance(exc, errors.CapacityError):
        return Refusal(code, details)
    if isinstance(exc, errors.LimitReached) and not exc.is_worth_retrying:
        return Refusal(code, details, (("grpc-retry-pushback-ms", "-1"),))  # gRPC's word for never
    return Refusal(code, details, _retry(code, details, exc.retry_after_s))


_STATUS, _RETRY_INFO = make("google.rpc.Status"), make("google.rpc.RetryInfo")


def _retry(code: grpc.StatusCode, details: str, seconds: int) -> Metadata:
    """The seconds after which to try again: for people, for gRPC's own retries, and typed."""
    info = _RETRY_INFO(retry_delay={"seconds": seconds})
    packed = {
        "type_url": "type.googleapis.com/google.rpc.RetryInfo",
        "value": info.SerializeToString(),
    }
    status = _STATUS(code=code.value[0], message=details, details=[packed])
    return (
        ("retry-after", str(seconds)),
        ("grpc-retry-pushback-ms", str(1000 * seconds)),
        ("grpc-status-details-bin", status.SerializeToString()),
    )
