"""A route that an application of another library answers, behind our keys and bounds of a body."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from matryo.http.authentication import caller_of
from matryo.http.body import check_media, read_body
from matryo.http.context import context_of


def guest_route(path: str, application: ASGIApp, methods: Sequence[str]) -> Route:
    """The route of an application; other methods are answered with 405.

    Args:
        path: of the route.
        application: called for requests with a key, once their bodies are read.
        methods: that the application answers.
    """
    return Route(path, _Guest(application, path), methods=methods, name=path)


class _Guest:
    """A class, because Starlette takes a function for an endpoint that returns a response."""

    def __init__(self, application: ASGIApp, name: str) -> None:
        self._application = application
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self  # Starlette's routes, unlike FastAPI's, are not in the scope
        request = Request(scope, receive)
        request.state.caller = caller_of(request)
        context = context_of(request)
        lease = request.state.lease = context.service.lease(request.state.caller)
        if request.method == "POST":
            check_media(request)
        body = bytes(await read_body(request, context.body, lease))
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return left.pop() if left else await receive()

        await self._application(scope, replay, send)
