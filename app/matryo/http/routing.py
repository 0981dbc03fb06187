"""Kinds of routes that ask for a key before anything else."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from matryo.http.authentication import caller_of
from matryo.http.context import context_of

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Described(APIRoute):
    """A route whose answers are described when the OpenAPI document is asked for.

    FastAPI makes a validator for each status of each route, and the validators of all routes take
    a tenth of a server's start.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._given = args, kwargs
        super().__init__(*args, **kwargs | {"responses": None})

    def described(self) -> APIRoute:
        """The route with its answers, for the document alone."""
        args, kwargs = self._given
        return APIRoute(*args, **kwargs)


class Keyed(Described):
    """A route that asks for a key before anything else, and leaves the caller in the state."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the check of the key."""
        return _with_key(super().get_route_handler())


class Direct(Described):
    """A route with a key whose endpoint reads the request and writes the answer itself.

    FastAPI describes the route, and has no part in its requests. An error of the endpoint reaches
    the caller of `app`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        handler = _with_key(cast("_Handler", self.endpoint))

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await handler(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = answer


def _with_key(handler: _Handler) -> _Handler:
    """`handler`, called only for callers with a key that has a request left."""

    async def check_first(request: Request) -> Response:
        caller = request.scope["state"]["caller"] = caller_of(request)
        if request.method == "POST":  # other methods say what is served, and cost nothing
            context_of(request).service.begin(caller)
        return await handler(request)

    return check_first
