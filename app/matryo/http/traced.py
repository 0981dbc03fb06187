"""The span of an HTTP request: its name and attributes, by its head and by the route."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from matryo.core import trace_names as names
from matryo.core.tracing import NO_SPAN, Span, Tracer, Value
from matryo.http.errors import shown_path
from matryo.http.heads import values_of

_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_EMBEDDING_ROUTES = frozenset({"/v1/embeddings", "/embed", "/predict"})
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_FIRST_ERROR, _FIRST_FAULT = 400, 500


def begin(tracer: Tracer, scope: Scope, request_id: str) -> Span:
    """The span of a request that begins now; of a probe, one that does nothing.

    Args:
        tracer: makes the span.
        scope: of the request.
        request_id: of the request.
    """
    if not tracer.is_on or scope["path"] in _PROBES:
        return NO_SPAN
    method = _method(scope)
    attributes: dict[str, Value] = {
        names.HTTP_METHOD: method,
        names.URL_PATH: shown_path(scope["path"]),
        names.URL_SCHEME: scope.get("scheme", "http"),
        names.REQUEST_ID: request_id,
    }
    if server := scope.get("server"):
        attributes[names.SERVER_ADDRESS], attributes[names.SERVER_PORT] = server

    def header(name: str) -> str | None:
        found = values_of(scope, name.encode())
        # Only the state may come in several headers; a context that is there twice is none.
        return None if len(found) > 1 and name == "traceparent" else ",".join(found) or None

    return tracer.request(method, header, attributes, under=NO_SPAN)


def end(span: Span, scope: Scope) -> None:
    """End the span of a request, whose `state` says how the request ended.

    A refusal (4xx) is the caller's error and leaves the span's status alone, and so does a caller
    that hung up; a fault of the server makes the status an error.

    Args:
        span: of the request.
        scope: of the request. In its state, `status` is the answer's, or the log line's if the
            caller `is_gone`; `fault` is the kind of the error that broke off an answer.

    Source: semantic-conventions, docs/http/http-spans.md, "Status".
    """
    if span is NO_SPAN:
        return
    state = scope["state"]
    status: int = state["status"]
    fault: str | None = state.get("fault")
    facts: dict[str, Any] = state["facts"]
    route: str | None = getattr(scope.get("route"), "name", None)
    name = f"{_method(scope)} {route}" if route else _method(scope)
    attributes: dict[str, Value] = {
        names.HTTP_ROUTE: route,
        names.HTTP_STATUS: None if state.get("is_gone") else status,
        names.CLIENT_ADDRESS: facts.get("client"),
    }
    if route in _EMBEDDING_ROUTES:
        # A request that was refused before its options were read is one for embeddings, too.
        attributes[names.OPERATION] = names.EMBEDDINGS
        attributes[names.PROVIDER] = names.PROVIDER_VALUE
        model = facts.get("model")
        name = f"{names.EMBEDDINGS} {model}" if model else names.EMBEDDINGS
    span.set(attributes)
    error = fault or (str(status) if status >= _FIRST_ERROR else None)
    span.end(name, error, is_fault=bool(fault) or status >= _FIRST_FAULT)


def span_of(request: Request) -> Span:
    """The span of a request."""
    return request.scope["state"].get("span", NO_SPAN)


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else names.OTHER_METHOD
