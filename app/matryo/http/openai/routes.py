"""OpenAI's routes: embeddings and models, with and without `/v1`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from matryo.catalog.manifest import Manifest
from matryo.engine.postprocess import FloatArray
from matryo.http.body import check_media, deadline, read_body, unless_gone
from matryo.http.context import Context, context_of
from matryo.http.openai.encoding import check_embedding_type, encode_response, quantize
from matryo.http.openai.wire import (
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    Inputs,
    Model,
    ModelList,
    parse_request,
)
from matryo.service.inputs import Choices, Tokenized, choose, fingerprint_of, tokenize

# Results of so few numbers are written where they are; larger ones on a thread.
_INLINE_NUMBERS = 4096


async def create_embeddings(request: Request) -> Response:
    """Embed one text or up to 2048."""
    started = time.perf_counter()
    context = context_of(request)
    context.keys.check(request.headers.get("authorization"))
    check_media(request)
    call, inputs = parse_request(await read_body(request, context.limits))
    choices = choose(call, context.directory, context.defaults)
    embedding_type = call.embedding_type or "float"
    check_embedding_type(embedding_type, choices.dimensions)

    async with deadline(request):
        tokenized, vectors = await unless_gone(request, _embed(context, call, inputs, choices))

    manifest = choices.engine.manifest
    encoding = time.perf_counter()

    def encode() -> bytes:
        return encode_response(
            quantize(vectors, embedding_type),
            call.encoding_format or "float",
            model=manifest.id,
            n_tokens=tokenized.n_tokens,
        )

    if vectors.size <= _INLINE_NUMBERS:
        body = encode()
    else:
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(context.tokenizers, encode)
    context.metrics.encode_seconds.labels(manifest.id).observe(time.perf_counter() - encoding)
    _count(context, choices, tokenized)
    request.state.facts |= {
        "model": manifest.id,
        "texts": len(tokenized.texts),
        "tokens": tokenized.n_tokens,
        "input_type": choices.input_type,
        "dimensions": choices.dimensions,
        "truncated": tokenized.n_truncated or None,
    }

    headers = {
        "openai-processing-ms": str(round((time.perf_counter() - started) * 1000)),
        "x-matryo-fingerprint": fingerprint_of(choices, embedding_type),
    }
    if tokenized.n_truncated:
        headers["x-matryo-truncated"] = str(tokenized.n_truncated)
    if choices.warning:
        headers["x-matryo-warning"] = choices.warning
    return Response(body, headers=headers, media_type="application/json")


async def _embed(
    context: Context, call: EmbeddingRequest, inputs: Inputs, choices: Choices
) -> tuple[Tokenized, FloatArray]:
    """Tokens, then vectors: all of a request that its caller's hanging up cancels."""
    context.scheduler.check_room()
    started = time.perf_counter()
    if context.decoder and inputs.arrays:
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(context.tokenizers, context.decoder.decode, inputs)
    tokenized = await tokenize(inputs, call, choices, executor=context.tokenizers)
    model = choices.engine.manifest.id
    context.metrics.tokenize_seconds.labels(model).observe(time.perf_counter() - started)
    vectors = await context.scheduler.run(choices.engine, tokenized.texts, choices.dimensions)
    return tokenized, vectors


def _count(context: Context, choices: Choices, tokenized: Tokenized) -> None:
    manifest = choices.engine.manifest
    known = choices.dimensions in manifest.output.dimensions.trained
    size = str(choices.dimensions) if known else "other"
    context.metrics.texts.labels(manifest.id, choices.input_type, size).inc(len(tokenized.texts))
    context.metrics.tokens.labels(manifest.id, choices.input_type, size).inc(tokenized.n_tokens)
    if tokenized.n_truncated:
        context.metrics.truncations.labels(manifest.id).inc(tokenized.n_truncated)


async def list_models(request: Request) -> Response:
    """The served models, the default first."""
    context = context_of(request)
    context.keys.check(request.headers.get("authorization"))
    models = [_model(engine.manifest).model_dump() for engine in context.directory.engines]
    return _json({"object": "list", "data": models})


async def retrieve_model(request: Request, model: str) -> Response:
    """One served model, by id or alias."""
    context = context_of(request)
    context.keys.check(request.headers.get("authorization"))
    if not model:
        raise HTTPException(404)
    engine, _ = context.directory.resolve(model, param="model")
    return _json(_model(engine.manifest).model_dump())


def _model(manifest: Manifest) -> Model:
    return Model(
        id=manifest.id,
        object="model",
        created=manifest.created_s,
        owned_by=manifest.owned_by,
    )


def _json(data: Any) -> Response:  # noqa: ANN401
    return Response(orjson.dumps(data), media_type="application/json")


class _Direct(APIRoute):
    """A route whose endpoint reads the request and writes the answer itself.

    FastAPI still describes it, but there are no parameters to solve and nothing to serialise;
    its handling of both takes a quarter of a short request's time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint as it is."""
        return cast("Callable[[Request], Coroutine[Any, Any, Response]]", self.endpoint)


_ERRORS: dict[int, str] = {
    400: "The request can never succeed as it is; the message says why.",
    401: "No API key, or a wrong one.",
    404: "No such model here.",
    408: "The body did not arrive, or the request was not done, in the time its caller gives it.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    429: "The queue is full: try again after Retry-After seconds.",
    500: "A fault of the server; the message carries an id for its operator.",
    503: "Starting or shutting down: try again after Retry-After seconds.",
}


def _responses(model: type[Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    described = {
        status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in statuses
    }
    return {200: {"model": model}, **described}


def build_router() -> APIRouter:
    """OpenAI's routes; those without `/v1` serve base URLs that lack it."""
    router = APIRouter()
    for prefix in ("/v1", ""):
        router.add_api_route(
            prefix + "/embeddings",
            create_embeddings,
            methods=["POST"],
            name="/v1/embeddings",
            summary="Create embeddings",
            operation_id="createEmbedding",
            responses=_responses(EmbeddingResponse, *_ERRORS),
            route_class_override=_Direct,
            include_in_schema=bool(prefix),
        )
        for method in ("GET", "HEAD"):
            shown = bool(prefix) and method == "GET"
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
                responses=_responses(Model, 401, 404),
                **shared,
            )
    return router
