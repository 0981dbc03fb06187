"""The middleware: request ids, the log line and metrics of a request, unhandled errors, and CORS.

The middleware is plain ASGI and passes `receive` to the route unchanged. Starlette's
BaseHTTPMiddleware would hide from the route that a caller disconnected.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from matryo.core.errors import CallerGone, RequestError
from matryo.core.metrics import Metrics, RequestLabels
from matryo.core.tracing import NO_TRACER, Tracer
from matryo.http import traced
from matryo.http.errors import body, error_response, shown_path
from matryo.http.heads import header_of
from matryo.service import Caller, Options
from matryo.service.request_id import request_id_of

log = logging.getLogger("matryo.request")

CLIENT_GONE = 499
"""nginx's status for a caller that disconnected before the answer; logged and counted only."""

_QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics", "/page/{name}"})


class RequestMiddleware:
    """Gives every request an id, and its answer the header `x-request-id`; logs and counts it.

    In `scope["state"]`, a route finds `request_id`, and `status`, the status of the answer, which
    is 0 until the answer begins. A route may add values to the log line: it puts them into `facts`.
    A lease in `lease` ends when the answer is written. The options of the request in `asked` name
    the model of a request that fails. The limits of `caller` go into the headers of the answer.
    `span` is the span of the request, and `trace_id` is there if that span is recorded.

    Args:
        app: answers the requests.
        metrics: what is counted.
        doors: the door of each route, by the route's name.
        describe: the model and the input type that some options mean; see `Service.describe`.
        plain: routes of Starlette, which names the endpoint alone in the scope of a request.
        log_client: whether the log line has the address of the peer.
        tracer: makes the spans.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        doors: Mapping[str, str],
        describe: Callable[[Options], tuple[str, str]],
        plain: Sequence[Route] = (),
        *,
        log_client: bool = False,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._doors = doors
        self._plain: dict[object, Route] = {route.endpoint: route for route in plain}
        self._describe = describe
        self._log_client = log_client
        self._tracer = tracer

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
        span = state["span"] = traced.begin(self._tracer, scope, request_id)
        if trace_id := span.trace_id:
            state["trace_id"] = trace_id
            facts |= span.facts
        id_header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                added = [id_header, *_limits(state.get("caller"))]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        self._metrics.n_in_progress += 1
        try:
            await self._answer(scope, receive, send_with_id)
        finally:
            if lease := state.get("lease"):
                lease.end()
            self._metrics.n_in_progress -= 1
            self._record(scope, time.perf_counter() - started)
            traced.end(span, scope)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and note what kept it from doing so."""
        state = scope["state"]
        try:
            await self._app(scope, receive, send)
        except CallerGone:
            # The connection knows whether the server ended it, and why.
            state["status"] = state.get("refused", CLIENT_GONE)
            if "refused" not in state:
                state["is_gone"] = True
                self._metrics.aborts.labels(state.get("ended", "hang_up")).inc()
        except asyncio.CancelledError:  # the server ends, whatever still runs
            state["status"] = 503
            self._metrics.aborts.labels("stopping").inc()
            raise
        except Exception as exc:
            request_id: str = state["request_id"]
            log.exception("unhandled error", extra={"request_id": request_id, **state["facts"]})
            state |= {"error": exc, "outcome": 500}
            if state["status"]:  # the answer has begun; the server closes the connection
                state["fault"] = type(exc).__name__
                raise
            response = error_response(exc, request_id, method=scope["method"], path=scope["path"])
            await response(scope, receive, send)

    def _count(self, scope: Scope, route: str, spent_s: float) -> None:
        """Count a request that ended, for its door and its model."""
        metrics, state = self._metrics, scope["state"]
        facts: dict[str, Any] = state["facts"]
        status = str(state.get("outcome") or state["status"])
        error: Exception | None = state.get("error")
        model, input_type = facts.get("model") or "", facts.get("input_type") or ""
        if not input_type and (asked := state.get("asked") or _asked_by(error)):
            model, input_type = self._describe(asked)
            facts["model"] = model or None
        labels = RequestLabels(self._doors.get(route, "none"), route, model, input_type, status)
        metrics.count_request(labels, spent_s, state.get("trace_id"))
        caller: Caller | None = state.get("caller")
        if caller:
            metrics.caller_requests.labels(caller.name or "", status).inc()
        if error:
            metrics.count_error(error, caller and caller.name)

    def _record(self, scope: Scope, spent_s: float) -> None:
        """Count and log a request that ended."""
        # A route's name is its path. An unknown path is a text of the caller, and never a label.
        found = scope.get("route") or self._plain.get(scope.get("endpoint"))
        route: str = getattr(found, "name", "other")
        state = scope["state"]
        facts: dict[str, Any] = state["facts"]
        status: int = state["status"]
        self._count(scope, route, spent_s)
        if (caller := state.get("caller")) and caller.name is not None:
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


def _asked_by(error: Exception | None) -> Options | None:
    """What a request asked for whose body was read as far as its model; None for any other."""
    model = error.model if isinstance(error, RequestError) else None
    return None if model is None else Options(model or None)


def _limits(caller: Caller | None) -> list[tuple[bytes, bytes]]:
    """The headers with what is left to a caller's key."""
    if caller is None or caller.allowance is None:
        return []
    return [(name.encode(), value.encode()) for name, value in caller.allowance.headers().items()]


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
            f"{reason}. The origins in MATRYO_CORS_ORIGINS may send GET, POST and DELETE here.",
            headers={"vary": "Origin"},
        )
