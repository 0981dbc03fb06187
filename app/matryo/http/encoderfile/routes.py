"""Encoderfile's routes: vectors of the default model, and its name."""

from __future__ import annotations

import sys
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from matryo.http.body import announced_deadline_s
from matryo.http.context import context_of
from matryo.http.encoderfile.encoding import Results
from matryo.http.encoderfile.wire import ModelMetadata, PredictRequest, PredictResponse
from matryo.http.openai.tally import Tally
from matryo.http.routing import Direct
from matryo.http.rows import most_piece_bytes
from matryo.http.tei.parsing import parse
from matryo.http.traced import span_of
from matryo.http.vectors import FEW_TEXTS, embed, headers_of, read_call, respond
from matryo.service import Options, Texts

_Call = tuple[PredictRequest, Texts, tuple[str, ...]]


async def predict(request: Request) -> Response:
    """Embed texts; those over the model's limit are cut, as Encoderfile cuts them."""
    context = context_of(request)
    lease = request.state.lease = context.service.lease(request.state.caller)
    request.state.asked = Options()

    def parse_body(body: bytes | bytearray, tally: Tally | None) -> _Call:
        limits, unknown = context.service.limits, context.unknown_fields
        return parse(PredictRequest, "inputs", body, limits, unknown, tally, takes_ids=False)

    call, texts, ignored = await read_call(request, context, lease, parse_body, _n_bytes)
    if len(texts) > FEW_TEXTS:
        lease.grow(most_piece_bytes(len(texts) * context.service.directory.largest), "answer")
    options = Options(truncate=True, deadline_s=announced_deadline_s(request))
    answer = await embed(request, context, options, texts, lease)
    results = Results(answer.vectors, answer.model, call.metadata)
    tenant = request.state.caller.tenant
    return respond(results, headers_of(answer, ignored), context, answer, span_of(request), tenant)


def _n_bytes(call: _Call) -> int:
    """Bytes of memory that a call takes."""
    fields, texts, _ignored = call
    words = (fields.metadata or {}).items()
    return texts.n_bytes + sum(sys.getsizeof(word) for pair in words for word in pair)


async def model(request: Request) -> Response:
    """The default model and its kind."""
    name = context_of(request).service.directory.ids[0]
    content = orjson.dumps(ModelMetadata(model_id=name).model_dump())
    return Response(content, media_type="application/json")


_ERRORS: dict[int, str] = {
    400: "The body is not JSON.",
    401: "No API key, or a wrong one.",
    403: "The key may not use this model.",
    408: "The body did not arrive, or the request was not done, in the time its caller gives it.",
    412: "The vectors would have another fingerprint than x-matryo-expect-fingerprint names.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    422: "The request can never succeed as it is; the text says why.",
    429: "No room, too long a wait, or a limit of the key: try again after Retry-After seconds.",
    500: "A fault of the server; the text carries an id for its operator.",
    503: "Starting or shutting down: try again after Retry-After seconds.",
}


def _responses(kind: type[Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    plain = {"text/plain": {"schema": {"type": "string"}}}
    described = {status: {"description": _ERRORS[status], "content": plain} for status in statuses}
    return {200: {"model": kind}, **described}


def build_router() -> APIRouter:
    """Encoderfile's routes."""
    router = APIRouter(route_class=Direct)
    router.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        name="/predict",
        summary="Embed texts, as Encoderfile does",
        operation_id="predict",
        responses=_responses(PredictResponse, *_ERRORS),
    )
    for method in ("GET", "HEAD"):
        router.add_api_route(
            "/model",
            model,
            methods=[method],
            name="/model",
            summary="The default model, as Encoderfile has it",
            operation_id="model",
            responses=_responses(ModelMetadata, 401),
            include_in_schema=method == "GET",
        )
    return router
