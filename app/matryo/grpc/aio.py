"""grpc.aio's server, which outlives a call of a method whose name is not UTF-8.

grpc.aio decodes the name of an unregistered method in its main loop. A name that is not UTF-8 ends
the main loop, and with the loop the server. Here every method is registered, and calls of
unregistered methods are answered before the main loop sees the calls. Names with an underscore are
private to grpcio; tests/contract/test_grpc_wire.py has the call that ends a plain server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc
from grpc._cython import cygrpc

Methods = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
"""The handlers of a service, by the names of its methods."""

# The library logs as errors what callers do: they send metadata that are not UTF-8 (the line shows
# the bytes, which may be a key), and they leave while an answer is sent.
_CALLERS = ("Invalid encoding", "ExecuteBatchError raised in core")
logging.getLogger("grpc._cython.cygrpc").addFilter(
    lambda record: not record.getMessage().startswith(_CALLERS)
)

_cygrpc: Any = cygrpc  # pyright: ignore[reportUnknownVariableType] - compiled, without stubs
_Server: Any = cast("Any", grpc.aio)._server.Server  # noqa: SLF001 - see the top of this file


class _Calls(_cygrpc.AioServer):
    """The compiled part of a server. Its main loop gets calls of registered methods alone."""

    async def _request_call(self) -> None:
        """Answer calls of unregistered methods until the server stops, which raises."""
        answers: set[asyncio.Task[None]] = set()
        while True:
            state = cast("object", await super()._request_call())
            answer = asyncio.create_task(_unknown(state))
            answers.add(answer)
            answer.add_done_callback(answers.discard)


async def _unknown(state: object) -> None:
    """End a call of an unregistered method."""
    context = _cygrpc._ServicerContext(state, None, None, asyncio.get_running_loop())  # noqa: SLF001
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "This server has no such method.")
    except (grpc.aio.AbortError, grpc.aio.InternalError):
        return  # `abort` always raises: the call has ended, or its caller is gone


class _PlainServer(_Server):
    """`grpc.aio.Server` around `_Calls`."""

    def __init__(self, options: Sequence[tuple[str, int]], most_calls: int) -> None:
        self._loop = _cygrpc.get_working_loop()
        self._server = _Calls(self._loop, None, (), (), tuple(options), most_calls)


def server_of(
    services: Mapping[str, Methods], options: Sequence[tuple[str, int]], most_calls: int
) -> grpc.aio.Server:
    """A server that does not listen yet.

    Args:
        services: the methods of each service, by its full name.
        options: the library's own settings.
        most_calls: that run at a time.
    """
    server = _PlainServer(options, most_calls)
    for name, methods in services.items():
        server.add_registered_method_handlers(name, dict(methods))
    return server
