"""The application: FastAPI's routes and document, behind the few layers that this server needs.

FastAPI's own stack has seven layers for each request: telemetry, errors, bounds of bodies, stacks
of dependencies. A short request would spend a fifth of its time in them. Here a request passes
`RequestMiddleware`, CORS where an operator asks for it, and `Dispatch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from matryo.core.errors import MatryoError
from matryo.http.errors import error_response
from matryo.http.routing import Direct


class Application(FastAPI):
    """An application whose layers are those of `add_middleware`, and `Dispatch` behind them.

    Attributes:
        prefix: of every path, for callers of a proxy; empty for none.
    """

    prefix = ""

    def build_middleware_stack(self) -> ASGIApp:
        """The layers of a request; called by the first request, when all routes are known."""
        application: ASGIApp = Dispatch(self.router)
        for layer, args, kwargs in reversed(self.user_middleware):
            application = layer(application, *args, **kwargs)
        return application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or start and stop with the server."""
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        if self.prefix and scope["type"] == "http":
            scope["path"] = self._path_of(scope)
        await self.middleware_stack(scope, receive, send)

    def _path_of(self, scope: Scope) -> str:
        """The path without the prefix of a proxy that passes its prefix on.

        A path that has a route as it is keeps it: a proxy that strips the prefix `/v1` may ask for
        `/v1/models`.
        """
        path: str = scope["path"]
        rest = path.removeprefix(self.prefix)
        if rest == path or (rest and not rest.startswith("/")):
            return path
        is_own = any(route.matches(scope)[0] is not Match.NONE for route in self.router.routes)
        return path if is_own else rest or "/"


class Dispatch:
    """Calls the route of a request, and answers the errors that a route may raise.

    A `Direct` route with a fixed path is found by its path. The router finds all others, and
    answers what has no route.

    Args:
        router: with every route.
    """

    def __init__(self, router: Router) -> None:
        self._router = AsyncExitStackMiddleware(router)
        self._routes = router.routes
        self._direct = direct_routes(router.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            Exception: what is a fault of the server, or an error once the answer has begun.
        """
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        try:
            route = self._direct.get((scope["method"], scope["path"]))
            if route is None:
                await self._router(scope, receive, send)
            else:
                scope["route"] = route
                await route.app(scope, receive, send)
        except (MatryoError, HTTPException) as exc:
            if isinstance(exc, HTTPException) and exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                exc.headers = {"Allow": ", ".join(self._methods(scope))}
            state = scope["state"]
            if state["status"]:  # the answer has begun
                raise
            state["error"] = exc
            answer = error_response(
                exc, state["request_id"], method=scope["method"], path=scope["path"]
            )
            await answer(scope, receive, send)

    def _methods(self, scope: Scope) -> list[str]:
        """The methods of all routes that have the path of a request; Starlette tells of one."""
        found: set[str] = set()
        for route in self._routes:
            if isinstance(route, Route) and route.path_regex.match(scope["path"]):
                found |= route.methods or set()
        return sorted(found)


def direct_routes(routes: Sequence[BaseRoute]) -> dict[tuple[str, str], Direct]:
    """The `Direct` routes with a fixed path, by method and path."""
    found: dict[tuple[str, str], Direct] = {}
    for route in routes:
        if isinstance(route, Direct) and not route.param_convertors:
            for method in cast("set[str]", route.methods):
                found.setdefault((method, route.path), route)
    return found
