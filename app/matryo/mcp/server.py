"""The SDK's server with our tools: lists them, checks arguments, runs calls, translates errors.

The SDK runs each call as a task of the event loop, and cancels the task when the client cancels the
call or goes away. That frees the place in the scheduler.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, ValidationError

from matryo.core.errors import MatryoError
from matryo.mcp import traced
from matryo.mcp.errors import invalid, status_of, words_of
from matryo.mcp.tools import TOOLS, Call, Tool
from matryo.service import OPEN, Caller, Service
from matryo.service.request_id import request_id_of

log = logging.getLogger("matryo.request")

_INSTRUCTIONS = (
    "Compares texts by meaning with embedding models on this server. Use rank to find the texts "
    "that fit a query, similarity to compare two texts, and embed only where a program needs the "
    "numbers. Served models: {models}; the first is the default."
)


def build_tools_server(service: Service, version: str) -> Server:
    """The SDK's server, for any transport.

    Args:
        service: answers the calls; entered before the first of them.
        version: of Matryo.
    """
    listed = {tool.name: _described(tool) for tool in TOOLS}
    by_name = {tool.name: tool for tool in TOOLS}

    async def list_tools(_context: object, _params: object) -> types.ListToolsResult:
        return types.ListToolsResult(tools=list(listed.values()))

    async def call_tool(
        context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = by_name.get(params.name)
        if tool is None:
            known = ", ".join(by_name)
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool. This server has: {known}.")
        return await _answered(service, tool, context, params)

    return Server(
        "matryo",
        version=version,
        title="Matryo",
        instructions=_INSTRUCTIONS.format(models=", ".join(service.directory.ids)),
        get_tool_input_schema=lambda name: listed[name].input_schema if name in listed else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _described(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.arguments.model_json_schema(),
        output_schema=tool.result.model_json_schema(),
        annotations=types.ToolAnnotations(
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )


async def _answered(
    service: Service,
    tool: Tool,
    context: ServerRequestContext[Any, Any],
    params: types.CallToolRequestParams,
) -> types.CallToolResult:
    """The result of a call, or the error in the words that an assistant can act on."""
    started = time.perf_counter()
    # Of the HTTP request, whose metrics are those of the call. Over pipes there is none: no key.
    state: dict[str, Any] = context.request.scope["state"] if context.request else {}
    caller: Caller = state.get("caller", OPEN)
    request_id = request_id_of(None)
    span = traced.begin(service.tracer, tool.name, request_id, context, params)
    facts = dict(span.facts) | ({"key": caller.name} if caller.name else {})
    call = Call(service, caller, request_id, facts, span)
    outcome = "cancelled"
    try:
        try:
            service.begin(caller)
            result = await tool.run(call, _checked(tool, params.arguments))
        except BaseException as exc:
            state |= {"outcome": status_of(exc), "error": exc}
            if not isinstance(exc, Exception):
                raise
            outcome = type(exc).__name__
            if not isinstance(exc, MatryoError):
                extra = {"request_id": call.request_id, **call.facts}
                log.exception("unhandled error", extra=extra)
            return types.CallToolResult(
                content=[types.TextContent(text=words_of(exc, call.request_id))], is_error=True
            )
        outcome = "ok"
        return _result(result)
    finally:
        state |= {"asked": call.asked}
        state.setdefault("facts", {})["tokens"] = call.facts.get("tokens")
        traced.end(span, tool.name, outcome)
        spent_ms = round((time.perf_counter() - started) * 1000, 2)
        facts = {"request_id": call.request_id, "ms": spent_ms, **call.facts}
        log.info("tools/call %s %s", tool.name, outcome, extra=facts)


def _checked(tool: Tool, arguments: dict[str, Any] | None) -> BaseModel:
    """The arguments of a call.

    Raises:
        InvalidRequest: they are not what the tool takes.
    """
    try:
        return tool.arguments.model_validate(arguments or {})
    except ValidationError as exc:
        raise invalid(exc) from exc


def _result(result: BaseModel) -> types.CallToolResult:
    """The result as data, and as the same JSON for clients that read text alone."""
    return types.CallToolResult(
        content=[types.TextContent(text=result.model_dump_json())],
        structured_content=result.model_dump(),
    )
