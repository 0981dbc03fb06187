"""The span of a call of a tool."""

from __future__ import annotations

from typing import Any

from matryo.core import trace_names as names
from matryo.core.tracing import NO_SPAN, Span, Tracer


def begin(tracer: Tracer, tool: str, request_id: str, context: Any, params: Any) -> Span:  # noqa: ANN401 - the SDK's
    """The span of a call that begins now.

    The trace context of a call is in its parameters, because one HTTP request may carry several
    calls. A call without one belongs to the HTTP request that carries the call.

    Args:
        tracer: makes the span.
        tool: name of a tool of ours.
        request_id: of the call.
        context: of the call; has the HTTP request, if there is one.
        params: of the call.
    """
    if not tracer.is_on:
        return NO_SPAN
    meta: dict[str, Any] = dict(getattr(params, "meta", None) or {})

    def header(name: str) -> str | None:
        value = meta.get(name)
        return value if isinstance(value, str) else None

    request = getattr(context, "request", None)
    carrier: Span = request.scope["state"].get("span", NO_SPAN) if request else NO_SPAN
    attributes = {
        names.MCP_METHOD: names.TOOLS_CALL,
        names.OPERATION: names.EXECUTE_TOOL,
        names.TOOL_NAME: tool,
        names.REQUEST_ID: request_id,
    }
    return tracer.request(f"{names.TOOLS_CALL} {tool}", header, attributes, under=carrier)


def end(span: Span, tool: str, outcome: str) -> None:
    """End the span of a call.

    Args:
        span: of the call.
        tool: name of the tool.
        outcome: as the log line has it: `ok`, `cancelled`, or the kind of an error.

    Source: semantic-conventions-genai, docs/gen-ai/mcp.md: every error is an error of the span.
    """
    own = {"ok": None, "cancelled": outcome}
    error = own.get(outcome, names.TOOL_ERROR)
    span.end(f"{names.TOOLS_CALL} {tool}", error, is_fault=error is not None)
