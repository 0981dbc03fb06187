"""TEI's routes: vectors, tokens and strings of the default model, and facts about the model."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from matryo.catalog.manifest import Manifest
from matryo.http.body import announced_deadline_s, hang_up
from matryo.http.context import Context, context_of
from matryo.http.openai.tally import Tally
from matryo.http.pieces import PiecesResponse
from matryo.http.routing import Direct
from matryo.http.rows import most_piece_bytes
from matryo.http.tei.encoding import VectorLists, joined, strings, token_lists
from matryo.http.tei.parsing import options_of, parse
from matryo.http.tei.wire import (
    DecodeRequest,
    DecodeResponse,
    EmbedRequest,
    EmbedResponse,
    Info,
    ModelType,
    Pooling,
    TeiError,
    TokenizeRequest,
    TokenizeResponse,
)
from matryo.http.traced import span_of
from matryo.http.vectors import FEW_TEXTS, embed, headers_of, read_call, respond
from matryo.service import Options, Texts

R = TypeVar("R", bound=BaseModel)

_JSON = {"content-type": "application/json"}


async def create_vectors(request: Request) -> Response:
    """Embed one text or several; the answer is a list of vectors."""
    started = time.perf_counter()
    context = context_of(request)
    call, texts, ignored = await _call(request, context, EmbedRequest, "inputs")
    options = request.state.asked = options_of(call, announced_deadline_s(request))
    lease = request.state.lease
    if len(texts) > FEW_TEXTS:
        size = options.dimensions or context.service.directory.largest
        lease.grow(most_piece_bytes(len(texts) * size), "answer")
    answer = await embed(request, context, options, texts, lease)
    spent_ms = str(round((time.perf_counter() - started) * 1000))
    headers = headers_of(answer, ignored) | {
        "x-compute-type": "cpu",
        "x-compute-time": spent_ms,
        "x-compute-characters": str(sum(map(len, texts.strings or texts.token_arrays))),
        "x-compute-tokens": str(answer.n_tokens),
        "x-total-time": spent_ms,
    }
    tenant = request.state.caller.tenant
    vectors = VectorLists(answer.vectors)
    return respond(vectors, headers, context, answer, span_of(request), tenant)


async def tokenize(request: Request) -> Response:
    """The tokens that the model reads of each text, its prefix included; uncut."""
    context = context_of(request)
    call, texts, ignored = await _call(request, context, TokenizeRequest, "inputs", ids=False)
    pieces = await context.service.tokenize(
        Options(input_type=call.prompt_name, deadline_s=announced_deadline_s(request)),
        texts,
        token_lists,
        request.state.caller,
        add_special_tokens=call.add_special_tokens is not False,
        gone=partial(hang_up, request),
        lease=request.state.lease,
    )
    return _list_response(pieces, ignored)


async def decode(request: Request) -> Response:
    """The string of each array of token ids."""
    context = context_of(request)
    call, texts, ignored = await _call(request, context, DecodeRequest, "ids")
    pieces = await context.service.decode(
        Options(deadline_s=announced_deadline_s(request)),
        texts,
        strings,
        request.state.caller,
        skip_special_tokens=call.skip_special_tokens is not False,
        gone=partial(hang_up, request),
        lease=request.state.lease,
    )
    return _list_response(pieces, ignored)


async def info(request: Request) -> Response:
    """The default model and the limits of a request."""
    service = context_of(request).service
    engine = service.directory.engines[0]
    manifest = engine.manifest
    hub = manifest.hub
    config = service.config.scheduler
    answer = Info(
        model_id=hub.repo if hub else manifest.id,
        model_sha=hub.revision if hub else None,
        model_dtype="float32" if engine.precision == "fp32" else engine.precision,
        served_model_name=manifest.id,
        model_type=ModelType(embedding=Pooling(pooling=_pooling(manifest))),
        max_concurrent_requests=config.max_requests or sys.maxsize,
        max_input_length=manifest.tokenizer.max_tokens,
        max_batch_tokens=engine.limits.max_batch_tokens,
        max_batch_requests=None,
        max_client_batch_size=service.limits.max_texts or sys.maxsize,
        auto_truncate=True,
        tokenization_workers=config.workers,
        version=request.app.version,
        sha=None,
        docker_label=None,
    )
    return Response(orjson.dumps(answer.model_dump()), headers=_JSON)


def _pooling(manifest: Manifest) -> str:
    """TEI's name of the pools: `mean`, `cls`, `last_token`; ours where TEI has none."""
    names = [name.removesuffix("_pool") for name in manifest.output.pools]
    return "+".join(names) or "given"


async def _call(
    request: Request, context: Context, kind: type[R], field: str, *, ids: bool = True
) -> tuple[R, Texts, tuple[str, ...]]:
    """What `parse` makes of the request; starts the request's lease.

    Args:
        request: the request.
        context: of the application.
        kind: what the body describes.
        field: with the texts.
        ids: whether the texts may come as token ids.
    """
    lease = request.state.lease = context.service.lease(request.state.caller)
    request.state.asked = Options()

    def parse_body(
        body: bytes | bytearray, tally: Tally | None
    ) -> tuple[R, Texts, tuple[str, ...]]:
        limits, unknown = context.service.limits, context.unknown_fields
        return parse(kind, field, body, limits, unknown, tally, takes_ids=ids)

    return await read_call(request, context, lease, parse_body, lambda found: found[1].n_bytes)


def _list_response(pieces: Sequence[bytes], ignored: tuple[str, ...]) -> Response:
    """A JSON list of the items of each piece."""
    headers = _JSON | ({"x-matryo-warning": "; ".join(ignored)} if ignored else {})
    if len(pieces) == 1:
        return Response(b"".join(joined(pieces)), headers=headers)

    async def sent() -> AsyncGenerator[bytes, None]:
        for piece in joined(pieces):
            yield piece

    return PiecesResponse(sent(), headers)


class _OnlyPost(Direct):
    """A route that matches requests with its own method only: `/` has other uses, too."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """No match in place of a partial one."""
        match, child = super().matches(scope)
        return (Match.NONE, {}) if match is Match.PARTIAL else (match, child)


_ERRORS: dict[int, str] = {
    400: "No text, an empty text, or a body that is not JSON.",
    401: "No API key, or a wrong one.",
    403: "The key may not use this model.",
    408: "The body did not arrive, or the request was not done, in the time its caller gives it.",
    412: "The vectors would have another fingerprint than x-matryo-expect-fingerprint names.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    422: "The request can never succeed as it is; the message says why.",
    424: "The model failed; the message carries an id for the operator.",
    429: "No room, too long a wait, or a limit of the key: try again after Retry-After seconds.",
    500: "A fault of the server; the message carries an id for its operator.",
    503: "Starting or shutting down: try again after Retry-After seconds.",
}

_WITHOUT_VECTORS = [status for status in _ERRORS if status != HTTPStatus.PRECONDITION_FAILED]


def _responses(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:  # noqa: ANN401 - a type of an answer
    described = {status: {"model": TeiError, "description": _ERRORS[status]} for status in statuses}
    return {200: {"model": model}, **described}


def build_router() -> APIRouter:
    """TEI's routes. Clients of Hugging Face's hub send the body of `/embed` to `/`."""
    router = APIRouter(route_class=Direct)
    add = router.add_api_route
    embedding: dict[str, Any] = {
        "methods": ["POST"],
        "name": "/embed",
        "summary": "Embed texts, as TEI does",
        "operation_id": "embed",
        "responses": _responses(EmbedResponse, *_ERRORS),
    }
    add("/embed", create_vectors, **embedding)
    add("/", create_vectors, **embedding, route_class_override=_OnlyPost, include_in_schema=False)
    add(
        "/tokenize",
        tokenize,
        methods=["POST"],
        name="/tokenize",
        summary="Tokens of texts, as TEI has them",
        operation_id="tokenize",
        responses=_responses(TokenizeResponse, *_WITHOUT_VECTORS),
    )
    add(
        "/decode",
        decode,
        methods=["POST"],
        name="/decode",
        summary="Strings of token ids, as TEI has them",
        operation_id="decode",
        responses=_responses(DecodeResponse, *_WITHOUT_VECTORS),
    )
    for method in ("GET", "HEAD"):
        add(
            "/info",
            info,
            methods=[method],
            name="/info",
            summary="The default model and limits, as TEI has them",
            operation_id="info",
            responses=_responses(Info, 401),
            include_in_schema=method == "GET",
        )
    return router
