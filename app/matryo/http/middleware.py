"""The middleware: request ids, the log line and metrics of a request, unhandled errors, and CORS.

The middleware is plain ASGI and passes `receive` to the route unchanged. Starlette's
BaseHTTPMiddleware would hide from the route that a caller disconnected.
"""

from __future__ import annotations

import http
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from matryo.core.errors import CallerGone
from matryo.core.metrics import Metrics
from matryo.http.errors import body, error_response, shown_path
from matryo.http.heads import header_of
from matryo.service import Caller
from matryo.service.request_id import request_id_of

log = logging.getLogger("matryo.request")

CLIENT_GONE = 499
"""nginx's status for a caller that disconnected before the answer; logged and counted only."""

_QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics"})


class RequestMiddleware:
    """Gives every request an id, and its answer the header `x-request-id`; logs and counts it.

    In `scope["state"]`, a route finds `request_id`, and `status`, the status of the answer, which
    is 0 until the answer begins. A route may add values to the log line: it puts them into `facts`.
    A lease in `lease` ends when the answer is written. The limits of `caller` go into the headers
    of the answer.

    Args:
        app: answers the requests.
        metrics: what is counted.
        log_client: whether the log line has the address of the peer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_client: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._log_client = log_client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of(header_of(scope, b"x-request-id"))
        facts: dict[str, Any] = {}
        if self._log_client and scope.get("client"):
            facts["client"] = scope["client"][0]
        state = scope.setdefault("state", {})
        state["facts"] = facts
        state["request_id"] = request_id
        state["status"] = 0
        id_header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                added = [id_header, *_limits(state.get("caller"))]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        self._metrics.requests_in_progress.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except CallerGone:
            state["status"] = CLIENT_GONE
        except Exception as exc:
            log.exception("unhandled error", extra={"request_id": request_id, **facts})
            if state["status"]:  # the answer has begun; the server closes the connection
                raise
            response = error_response(exc, request_id, method=scope["method"], path=scope["path"])
            await response(scope, receive, send_with_id)
        finally:
            if lease := state.get("lease"):
                lease.end()
            self._metrics.requests_in_progress.dec()
            self._record(scope, time.perf_counter() - started)

    def _record(self, scope: Scope, spent_s: float) -> None:
        """Count and log a request that ended."""
        # A route's name is its path. An unknown path is a text of the caller, and never a label.
        route = getattr(scope.get("route"), "name", "other")
        state = scope["state"]
        facts: dict[str, Any] = state["facts"]
        status: int = state["status"]
        self._metrics.requests.labels(route, str(status), facts.get("model") or "").inc()
        self._metrics.request_seconds.labels(route).observe(spent_s)
        if caller := state.get("caller"):
            self._metrics.caller_requests.labels(caller.name or "", str(status)).inc()
            if caller.name is not None:
                facts["key"] = caller.name
        level = logging.DEBUG if route in _QUIET and status < 400 else logging.INFO  # noqa: PLR2004
        if log.isEnabledFor(level):
            log.log(
                level,
                "%s %s %d",
                scope["method"],
                _shown_path(scope),
                status,
                extra={
                    "request_id": state["request_id"],
                    "status": status,
                    "ms": round(spent_s * 1000, 2),
                    **facts,
                },
            )


def _limits(caller: Caller | None) -> list[tuple[bytes, bytes]]:
    """The headers with what is left to a caller's key."""
    if caller is None or caller.account is None:
        return []
    return [(name.encode(), value.encode()) for name, value in caller.account.headers().items()]


def _shown_path(scope: Scope) -> str:
    """The path as it came, percent-encoded: no path can pretend to be another fact of the line."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return shown_path(raw.decode("ascii", "backslashreplace"))


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with OpenAI's error object in its refusals."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser's preflight request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == http.HTTPStatus.OK:
            return answer
        reason = bytes(answer.body).decode()
        return body(
            answer.status_code,
            f"{reason}. This server accepts GET and POST from the origins in MATRYO_CORS_ORIGINS.",
            headers={"vary": "Origin"},
        )
