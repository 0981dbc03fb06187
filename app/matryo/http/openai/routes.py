"""OpenAI's routes: embeddings and models, with and without `/v1`, and as Azure has them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from matryo.core import trace_names as names
from matryo.http.body import announced_deadline_s
from matryo.http.context import context_of
from matryo.http.heads import values_of
from matryo.http.openai.encoding import Encoding
from matryo.http.openai.parsing import Parsed, options_of, parse_request
from matryo.http.openai.tally import Tally
from matryo.http.openai.wire import (
    EmbeddingResponse,
    ErrorResponse,
    ModelDetails,
    ModelList,
)
from matryo.http.raw import Raw, most_raw_bytes, prefers_raw, raw_headers
from matryo.http.routing import Direct, Keyed
from matryo.http.rows import most_piece_bytes
from matryo.http.traced import span_of
from matryo.http.vectors import FEW_TEXTS, embed, headers_of, read_call, respond


async def create_embeddings(request: Request) -> Response:
    """Embed one text or up to 2048."""
    started = time.perf_counter()
    context = context_of(request)
    state = request.scope["state"]
    lease = state["lease"] = context.service.lease(state["caller"])

    def parse(body: bytes | bytearray, tally: Tally | None) -> Parsed:
        return parse_request(body, context.service.limits, context.unknown_fields, tally)

    call, texts, ignored = await read_call(request, context, lease, parse, _text_bytes)
    options = options_of(call, announced_deadline_s(request))
    if deployment := request.path_params.get("deployment"):  # Azure names the model in the path
        options = replace(options, model=deployment)
    request.scope["state"]["asked"] = options
    is_raw = prefers_raw(values_of(request.scope, b"accept"))
    span = span_of(request)
    span.set({names.ENCODING_FORMATS: (call.encoding_format or "float",)})
    if len(texts) > FEW_TEXTS:
        size = options.dimensions or context.service.directory.largest
        n_numbers = len(texts) * size
        lease.grow(
            most_raw_bytes(n_numbers, options.embedding_type)
            if is_raw
            else most_piece_bytes(n_numbers),
            "answer",
        )
    answer = await embed(request, context, options, texts, lease)
    headers = headers_of(answer, ignored)
    tenant = state["caller"].tenant
    headers["openai-processing-ms"] = str(round((time.perf_counter() - started) * 1000))
    if is_raw:
        raw = Raw(answer.vectors, options.embedding_type)
        return respond(raw, headers | raw_headers(raw, answer), context, answer, span, tenant)
    encoding = Encoding(
        answer.vectors,
        call.encoding_format or "float",
        options.embedding_type,
        answer.model,
        answer.n_tokens,
    )
    return respond(encoding, headers, context, answer, span, tenant)


def _text_bytes(parsed: Parsed) -> int:
    return parsed[1].n_bytes


async def list_models(request: Request) -> Response:
    """The served models that the caller may use, the default first."""
    from matryo.http.openai.models import models_of

    return models_of(request)


async def retrieve_model(request: Request) -> Response:
    """One served model, by id or alias, with everything that shapes its vectors."""
    # Loaded when first asked for: serving vectors needs none of it.
    from matryo.http.openai.models import details_of

    return await details_of(request)


_ERRORS: dict[int, str] = {
    400: "The request can never succeed as it is; the message says why.",
    401: "No API key, or a wrong one.",
    403: "The key may not use this model.",
    404: "No such model here.",
    408: "The body did not arrive, or the request was not done, in the time its caller gives it.",
    412: "The vectors would have another fingerprint than x-matryo-expect-fingerprint names.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    429: "No room, too long a wait, or a limit of the key: try again after Retry-After seconds.",
    500: "A fault of the server; the message carries an id for its operator.",
    503: "Starting or shutting down: try again after Retry-After seconds.",
}


# Described here, because FastAPI would load pydantic's old version to look at a parameter.
_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


def _responses(model: type[Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    described = {
        status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in statuses
    }
    return {200: {"model": model}, **described}


def build_router() -> APIRouter:
    """OpenAI's routes.

    Those without `/v1` serve base URLs that lack it, those below `/openai` Azure's clients.
    """
    router = APIRouter(route_class=Keyed)
    paths = ("/v1/embeddings", "/embeddings", "/openai/v1/embeddings")
    for path in (*paths, "/openai/deployments/{deployment:path}/embeddings"):
        router.add_api_route(
            path,
            create_embeddings,
            methods=["POST"],
            name="/v1/embeddings",
            summary="Create embeddings",
            operation_id="createEmbedding",
            responses=_responses(EmbeddingResponse, *_ERRORS),
            route_class_override=Direct,
            include_in_schema=path == paths[0],
        )
    for prefix in ("/v1", "", "/openai/v1"):
        for method in ("GET", "HEAD"):
            shown = prefix == "/v1" and method == "GET"
            shared: dict[str, Any] = {"methods": [method], "include_in_schema": shown}
            router.add_api_route(
                prefix + "/models",
                list_models,
                name="/v1/models",
                summary="List models",
                operation_id="listModels",
                responses=_responses(ModelList, 401),
                **shared,
            )
            # `:path`, because clients percent-encode a slash in an id and servers decode it again.
            router.add_api_route(
                prefix + "/models/{model:path}",
                retrieve_model,
                name="/v1/models/{model}",
                summary="Retrieve a model",
                operation_id="retrieveModel",
                responses=_responses(ModelDetails, 401, 403, 404),
                openapi_extra={"parameters": [_MODEL]},
                **shared,
            )
    return router
