"""For those who keep the service alive: liveness, readiness, metrics.

No API key is asked. Metrics may have a key of their own, and the whole may have a port of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.responses import Response

from matryo.core.errors import Unauthorized
from matryo.http.context import context_of
from matryo.http.heads import header_of
from matryo.http.routing import Described
from matryo.service.keys import key_of


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
    context = context_of(request)
    _check_key(request, context.metrics_key)
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    context.metrics.refresh()
    # A few thousand lines take the loop for longer than a request may wait.
    body = await asyncio.to_thread(lambda: encode(context.metrics.exported()))
    return Response(body, headers={"content-type": content_type})


def _check_key(request: Request, expected: str | None) -> None:
    """Refuse a scrape without the key of the metrics, in the same time for every wrong key.

    Raises:
        Unauthorized: a key is asked for, and the request shows none or another one.
    """
    if expected is None:
        return
    shown = key_of(header_of(request.scope, b"authorization"))
    digests = (hashlib.sha256(key.encode("utf-8", "surrogateescape")) for key in (shown, expected))
    if not hmac.compare_digest(*(digest.digest() for digest in digests)):
        raise Unauthorized(
            "These metrics ask for a key of their own, and the request shows none or another one. "
            "Send the value of MATRYO_METRICS_KEY as Authorization: Bearer KEY."
        )


def _json(data: dict[str, str], status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def build_router(*, has_metrics: bool = True) -> APIRouter:
    """The operators' routes; load balancers may ask with HEAD.

    Args:
        has_metrics: whether `/metrics` is among them.
    """
    router = APIRouter(tags=["operations"], route_class=Described)
    routes = {
        "/livez": livez,
        "/readyz": readyz,
        "/health": health,
    }
    if has_metrics:
        routes["/metrics"] = metrics
    text = {"schema": {"type": "string"}}
    unready: dict[str, Any] = {"description": "Not now; it says why.", "model": Health}
    answers: dict[str, dict[int | str, dict[str, Any]]] = {
        "/livez": {200: {"model": Health}},
        "/readyz": {200: {"model": Health}, 503: unready},
        "/health": {200: {"model": Health}, 503: unready | {"model": TeiHealth}},
        "/metrics": {
            200: {"content": {"text/plain": text, "application/openmetrics-text": text}},
            401: {"description": "The server asks for a key of its metrics."},
        },
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
