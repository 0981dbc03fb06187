"""The way of vectors over HTTP, by any door: from a body to texts, from an answer to bytes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from matryo.core import trace_names as names
from matryo.core.budget import Lease
from matryo.core.tracing import Span
from matryo.http.body import check_media, hang_up, is_short, read_body
from matryo.http.context import Context
from matryo.http.heads import values_of
from matryo.http.openai.tally import SMALL_BYTES, Tally
from matryo.http.pieces import Piece, PiecesResponse
from matryo.http.traced import span_of
from matryo.scheduler import Tenant
from matryo.service import Answer, Options, Texts
from matryo.service.expectation import EXPECT, expected_of

FEW_TEXTS = 4
"""Results of so few texts are small."""

# Results of so few numbers are written on the event loop. Larger ones are written on a thread in
# pieces, of which one at a time is held.
_INLINE_NUMBERS = 4096
# Bytes that are parsed while one character is tokenised; characters that are tokenised while one
# piece is written.
_BYTES_PER_CHAR, _CHARS_PER_PIECE = 64, 2048

T = TypeVar("T")


class Writing(Protocol):
    """How the vectors of an answer become a body."""

    @property
    def media_type(self) -> str:
        """The body's Content-Type."""
        ...

    @property
    def n_bytes(self) -> int | None:
        """Bytes of the body; None if they are known only once the body is written."""
        ...

    @property
    def computes(self) -> bool:
        """Whether a piece is computed; if not, the pieces are parts of the vectors' memory."""
        ...

    def pieces(self) -> Iterator[Callable[[], Piece]]:
        """Functions that make the pieces of the body, which may be called on any thread."""
        ...


async def read_call(
    request: Request,
    context: Context,
    lease: Lease,
    parse: Callable[[bytes | bytearray, Tally | None], T],
    n_bytes_of: Callable[[T], int],
) -> T:
    """What `parse` makes of a request's body of JSON; the lease then holds the result.

    Args:
        request: the request.
        context: of the application.
        lease: of the request.
        parse: makes a call of the body; a large body is parsed on a thread, and comes with its
            counts.
        n_bytes_of: bytes of memory that a call takes.

    Raises:
        MatryoError: what `read_body`, `Tally` or `parse` raises.
    """
    check_media(request)
    service, tenant = context.service, request.scope["state"]["caller"].tenant
    tally = None if is_short(request, SMALL_BYTES) else Tally(service.limits)
    body = await read_body(request, context.body, lease, tally and tally.feed)
    n_bytes = len(body)
    if tally is None or n_bytes <= SMALL_BYTES:
        return parse(body, None)
    # Of a large body, no name here may keep what threads have read.
    tally.finish()
    lease.grow(tally.parsed_bytes, "texts")
    work = partial(parse, body, tally)
    del body
    work_chars = n_bytes // _BYTES_PER_CHAR
    with span_of(request).stage(names.PARSE), service.pool.job(work_chars, tenant) as job:
        parsed = await job.run(work)
    del work
    lease.hold(n_bytes_of(parsed), "texts")
    return parsed


async def embed(
    request: Request, context: Context, options: Options, texts: Texts, lease: Lease
) -> Answer:
    """The answer to a call; the request's log line then has the facts of the answer.

    Raises:
        MatryoError: what `Service.embed` raises.
        CallerGone: the caller was gone first.
    """
    state = request.scope["state"]
    facts: dict[str, Any] = state["facts"]
    if (expected := expected_of(values_of(request.scope, EXPECT.encode()))) is not None:
        options = replace(options, expect=expected)
    answer = await context.service.embed(
        options,
        texts,
        state["caller"],
        gone=partial(hang_up, request),
        lease=lease,
        request_id=state["request_id"],
        span=span_of(request),
    )
    facts |= {
        "model": answer.model,
        "texts": len(texts),
        "tokens": answer.n_tokens,
        "input_type": answer.input_type,
        "dimensions": answer.vectors.shape[1],
        "truncated": len(answer.truncated) or None,
        "unknown": len(answer.unknown) or None,
    }
    return answer


def headers_of(answer: Answer, ignored: tuple[str, ...]) -> dict[str, str]:
    """The headers of an answer with vectors.

    Args:
        answer: of the service.
        ignored: warnings about fields that were ignored.
    """
    headers = {"x-matryo-fingerprint": answer.fingerprint}
    if answer.truncated:
        headers["x-matryo-truncated"] = str(len(answer.truncated))
    if answer.unknown:
        headers["x-matryo-unknown"] = str(len(answer.unknown))
    if warnings := (*answer.warnings, *ignored):
        headers["x-matryo-warning"] = "; ".join(warnings)
    return headers


def respond(
    writing: Writing,
    headers: dict[str, str],
    context: Context,
    answer: Answer,
    span: Span,
    tenant: Tenant,
) -> Response:
    """The response with an answer's vectors: in one go, or in pieces if there are many numbers."""
    headers["content-type"] = writing.media_type
    if answer.vectors.size > _INLINE_NUMBERS:
        pieces = _written(writing, context, answer.model, span, tenant)
        return PiecesResponse(pieces, headers, writing.n_bytes)
    started = time.perf_counter()
    with span.stage(names.ENCODE):
        content = b"".join(make() for make in writing.pieces())
    context.metrics.encode_seconds.labels(answer.model).observe(time.perf_counter() - started)
    return Response(content, headers=headers)


async def _written(
    writing: Writing, context: Context, model: str, span: Span, tenant: Tenant
) -> AsyncGenerator[Piece, None]:
    """The pieces of a response, each made when the one before is sent."""
    spent_s = 0.0
    # The stage lasts until the last piece is sent.
    with span.stage(names.ENCODE):
        for make in writing.pieces():
            started = time.perf_counter()
            if writing.computes:
                with context.service.pool.job(_CHARS_PER_PIECE, tenant) as job:
                    piece = await job.run(make)
            else:
                piece = make()
            spent_s += time.perf_counter() - started
            yield piece
    context.metrics.encode_seconds.labels(model).observe(spent_s)
