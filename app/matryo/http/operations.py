"""For those who keep the service alive: liveness, readiness, metrics. No key is asked."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.responses import Response

from matryo.http.context import context_of
from matryo.http.routing import Described


class Health(BaseModel):
    """Whether the service is well, and if not, why."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None


class TeiHealth(Health):
    """The same, with TEI's words for a service that is not well."""

    error: str | None = None
    error_type: Literal["Unhealthy"] | None = None


async def livez() -> Response:
    """The process answers; restart it if it does not."""
    return _json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Every model ran within the last interval; send no traffic while it says otherwise."""
    reason = context_of(request).service.why_not_ready()
    if reason is None:
        return _json({"status": "ok"})
    return _json({"status": "unavailable", "reason": reason}, 503)


async def health(request: Request) -> Response:
    """The same as `/readyz`; TEI's clients find its error object as well."""
    reason = context_of(request).service.why_not_ready()
    if reason is None:
        return _json({"status": "ok"})
    words = {"error": f"unhealthy: {reason}", "error_type": "Unhealthy"}
    return _json({"status": "unavailable", "reason": reason, **words}, 503)


async def metrics(request: Request) -> Response:
    """Prometheus' metrics, in the format its Accept header prefers."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    context = context_of(request)
    context.metrics.ready.set(context.service.why_not_ready() is None)
    context.metrics.refresh()
    body = encode(context.metrics.exported())
    return Response(body, headers={"content-type": content_type})


def _json(data: dict[str, str], status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def build_router() -> APIRouter:
    """The operators' routes; load balancers may ask with HEAD."""
    router = APIRouter(tags=["operations"], route_class=Described)
    routes = {
        "/livez": livez,
        "/readyz": readyz,
        "/health": health,
        "/metrics": metrics,
    }
    text = {"schema": {"type": "string"}}
    unready: dict[str, Any] = {"description": "Not now; it says why.", "model": Health}
    answers: dict[str, dict[int | str, dict[str, Any]]] = {
        "/livez": {200: {"model": Health}},
        "/readyz": {200: {"model": Health}, 503: unready},
        "/health": {200: {"model": Health}, 503: unready | {"model": TeiHealth}},
        "/metrics": {200: {"content": {"text/plain": text, "application/openmetrics-text": text}}},
    }
    for path, endpoint in routes.items():
        for method in ("GET", "HEAD"):
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                name=path,
                responses=answers[path],
                response_class=Response,
                include_in_schema=method == "GET",
            )
    return router
