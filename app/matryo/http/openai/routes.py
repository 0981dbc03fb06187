"""OpenAI's routes: embeddings and models, with and without `/v1`, and as Azure has them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import request_response

from matryo.catalog.manifest import Manifest
from matryo.core.budget import Lease
from matryo.core.errors import CallerGone, MatryoError
from matryo.http.authentication import caller_of
from matryo.http.body import announced_deadline_s, check_media, hang_up, is_short, read_body
from matryo.http.context import Context, context_of
from matryo.http.openai.encoding import PIECE_NUMBERS, Encoding, most_piece_bytes
from matryo.http.openai.parsing import options_of, parse_request
from matryo.http.openai.tally import SMALL_BYTES, Tally
from matryo.http.openai.wire import (
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    Model,
    ModelList,
)
from matryo.http.pieces import PiecesResponse
from matryo.service import Answer, Texts

# Results of so few numbers are written on the event loop. Larger ones are written on a thread in
# pieces, of which one at a time is held. Few texts have small results.
_INLINE_NUMBERS, _FEW_TEXTS = 4096, 4
# Bytes that are parsed, and numbers that are encoded, while one character is tokenised.
_BYTES_PER_CHAR, _NUMBERS_PER_CHAR = 64, 16


async def create_embeddings(request: Request) -> Response:
    """Embed one text or up to 2048."""
    started = time.perf_counter()
    context = context_of(request)
    check_media(request)
    lease = request.state.lease = context.service.budget.lease()
    call, texts, ignored = await _parsed(request, context, lease)
    options = options_of(call, announced_deadline_s(request))
    if deployment := request.path_params.get("deployment"):  # Azure names the model in the path
        options = replace(options, model=deployment)
    if len(texts) > _FEW_TEXTS:
        size = options.dimensions or context.service.directory.largest
        lease.grow(most_piece_bytes(len(texts) * size))
    try:
        answer = await context.service.embed(
            options,
            texts,
            request.state.caller,
            gone=partial(hang_up, request),
            lease=lease,
            request_id=request.state.request_id,
        )
    except (MatryoError, CallerGone):
        request.state.facts["model"] = context.service.directory.find(options.model)
        raise
    request.state.facts |= _facts(answer, len(texts))
    encoding = Encoding(
        answer.vectors,
        call.encoding_format or "float",
        options.embedding_type,
        answer.model,
        answer.n_tokens,
    )
    headers = _headers(answer, ignored)
    headers["openai-processing-ms"] = str(round((time.perf_counter() - started) * 1000))
    if encoding.vectors.size > _INLINE_NUMBERS:
        return PiecesResponse(_encoded(encoding, context), headers)
    started = time.perf_counter()
    content = b"".join(make() for make in encoding.pieces())
    context.metrics.encode_seconds.labels(answer.model).observe(time.perf_counter() - started)
    return Response(content, headers=headers, media_type="application/json")


async def _parsed(
    request: Request, context: Context, lease: Lease
) -> tuple[EmbeddingRequest, Texts, tuple[str, ...]]:
    """What `parse_request` makes of a request's body; the lease then holds the texts."""
    service = context.service
    tally = None if is_short(request, SMALL_BYTES) else Tally(service.limits)
    body = await read_body(request, context.body, lease, tally and tally.feed)
    n_bytes = len(body)
    if tally is None or n_bytes <= SMALL_BYTES:
        return parse_request(body, service.limits, context.unknown_fields)
    # Of a large body, no name here may keep what threads have read.
    tally.finish()
    lease.grow(tally.parsed_bytes)
    parse = partial(parse_request, body, service.limits, context.unknown_fields, tally)
    del body
    with service.pool.job(n_bytes // _BYTES_PER_CHAR) as job:
        parsed = await job.run(parse)
    del parse
    lease.hold(parsed[1].n_bytes)
    return parsed


async def _encoded(encoding: Encoding, context: Context) -> AsyncIterator[bytes]:
    """The pieces of a response, each made when the one before is sent."""
    spent_s = 0.0
    for make in encoding.pieces():
        started = time.perf_counter()
        with context.service.pool.job(PIECE_NUMBERS // _NUMBERS_PER_CHAR) as job:
            piece = await job.run(make)
        spent_s += time.perf_counter() - started
        yield piece
    context.metrics.encode_seconds.labels(encoding.model).observe(spent_s)


def _facts(answer: Answer, n_texts: int) -> dict[str, Any]:
    """What the log line of a request says of its answer."""
    return {
        "model": answer.model,
        "texts": n_texts,
        "tokens": answer.n_tokens,
        "input_type": answer.input_type,
        "dimensions": answer.vectors.shape[1],
        "truncated": len(answer.truncated) or None,
        "unknown": len(answer.unknown) or None,
    }


def _headers(answer: Answer, ignored: tuple[str, ...]) -> dict[str, str]:
    headers = {"x-matryo-fingerprint": answer.fingerprint}
    if answer.truncated:
        headers["x-matryo-truncated"] = str(len(answer.truncated))
    if answer.unknown:
        headers["x-matryo-unknown"] = str(len(answer.unknown))
    if warnings := (*answer.warnings, *ignored):
        headers["x-matryo-warning"] = "; ".join(warnings)
    return headers


async def list_models(request: Request) -> Response:
    """The served models, the default first."""
    engines = context_of(request).service.directory.engines
    models = [_model(engine.manifest).model_dump() for engine in engines]
    return _json({"object": "list", "data": models})


async def retrieve_model(request: Request, model: str) -> Response:
    """One served model, by id or alias."""
    if not model:
        raise HTTPException(404)
    engine, _ = context_of(request).service.directory.resolve(model, param="model")
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


class _Keyed(APIRoute):
    """A route that asks for a key before anything else, and leaves the caller in the state."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the check of the key."""
        return _with_key(super().get_route_handler())


class _Direct(APIRoute):
    """A route with a key whose endpoint reads the request and writes the answer itself.

    FastAPI still describes the route, but has no parameters to solve, nothing to serialise and no
    dependencies to leave: its handling of these takes a quarter of a short request's time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = request_response(self.get_route_handler())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint behind the check of the key."""
        return _with_key(cast("_Handler", self.endpoint))


_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def _with_key(handler: _Handler) -> _Handler:
    """`handler`, called only for callers with a key."""

    async def check_first(request: Request) -> Response:
        request.state.caller = caller_of(request)
        return await handler(request)

    return check_first


_ERRORS: dict[int, str] = {
    400: "The request can never succeed as it is; the message says why.",
    401: "No API key, or a wrong one.",
    404: "No such model here.",
    408: "The body did not arrive, or the request was not done, in the time its caller gives it.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    429: "No room now, or too long a wait: try again after Retry-After seconds.",
    500: "A fault of the server; the message carries an id for its operator.",
    503: "Starting or shutting down: try again after Retry-After seconds.",
}


def _responses(model: type[Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    described = {
        status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in statuses
    }
    return {200: {"model": model}, **described}


def build_router() -> APIRouter:
    """OpenAI's routes.

    Those without `/v1` serve base URLs that lack it, those below `/openai` Azure's clients.
    """
    router = APIRouter(route_class=_Keyed)
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
            route_class_override=_Direct,
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
                responses=_responses(Model, 401, 404),
                **shared,
            )
    return router
