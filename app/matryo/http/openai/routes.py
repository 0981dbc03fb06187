"""OpenAI's routes: embeddings and models, with and without `/v1`, and as Azure has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from matryo.catalog.manifest import Manifest
from matryo.http.authentication import caller_of
from matryo.http.body import announced_deadline_s, check_media, hang_up, read_body
from matryo.http.context import context_of
from matryo.http.openai.encoding import encode_response
from matryo.http.openai.parsing import options_of, parse_request
from matryo.http.openai.wire import EmbeddingResponse, ErrorResponse, Model, ModelList
from matryo.service.numbers import quantize

# Results of so few numbers are written on the event loop; larger ones on a thread.
_INLINE_NUMBERS = 4096


async def create_embeddings(request: Request) -> Response:
    """Embed one text or up to 2048."""
    started = time.perf_counter()
    context = context_of(request)
    service = context.service
    check_media(request)
    body = await read_body(request, context.body)
    call, texts, ignored = parse_request(body, service.limits, context.unknown_fields)
    options = options_of(call, announced_deadline_s(request))
    if deployment := request.path_params.get("deployment"):  # Azure names the model in the path
        options = replace(options, model=deployment)
    answer = await service.embed(
        options,
        texts,
        request.state.caller,
        gone=partial(hang_up, request),
        request_id=request.state.request_id,
    )

    encoding = time.perf_counter()

    def encode() -> bytes:
        return encode_response(
            quantize(answer.vectors, options.embedding_type),
            call.encoding_format or "float",
            model=answer.model,
            n_tokens=answer.n_tokens,
        )

    small = answer.vectors.size <= _INLINE_NUMBERS
    content = encode() if small else await service.run_on_thread(encode)
    context.metrics.encode_seconds.labels(answer.model).observe(time.perf_counter() - encoding)
    request.state.facts |= {
        "model": answer.model,
        "texts": len(texts),
        "tokens": answer.n_tokens,
        "input_type": answer.input_type,
        "dimensions": answer.vectors.shape[1],
        "truncated": len(answer.truncated) or None,
        "unknown": len(answer.unknown) or None,
    }

    headers = {
        "openai-processing-ms": str(round((time.perf_counter() - started) * 1000)),
        "x-matryo-fingerprint": answer.fingerprint,
    }
    if answer.truncated:
        headers["x-matryo-truncated"] = str(len(answer.truncated))
    if answer.unknown:
        headers["x-matryo-unknown"] = str(len(answer.unknown))
    if warnings := (*answer.warnings, *ignored):
        headers["x-matryo-warning"] = "; ".join(warnings)
    return Response(content, headers=headers, media_type="application/json")


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

    FastAPI still describes the route, but has no parameters to solve and nothing to serialise:
    its handling of both takes a quarter of a short request's time.
    """

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
