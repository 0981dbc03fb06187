"""Reads a request's body within limits, and finds out when its caller stops waiting."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.types import Message, Receive

from matryo.core.budget import Lease
from matryo.core.errors import BodyTimeout, BodyTooLarge, CallerGone, UnsupportedMedia
from matryo.http.context import BodyLimits
from matryo.http.exchange import Exchange
from matryo.http.heads import header_of


def check_media(request: Request) -> None:
    """Refuse a body that is not plain JSON. A request without Content-Type is accepted.

    Raises:
        UnsupportedMedia: the Content-Type is not JSON, or the body is compressed.
    """
    encoding = (header_of(request.scope, b"content-encoding") or "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(
            f"Unsupported Content-Encoding: {encoding[:64]!r}. Send the body uncompressed.",
            code="unsupported_content_encoding",
        )
    content_type = header_of(request.scope, b"content-type") or ""
    media = content_type.partition(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(
            f"Unsupported content type: {media[:64]!r}. This API method only accepts "
            "'application/json' requests. Send the header 'Content-Type: application/json'.",
            code="unsupported_content_type",
        )


def _announced(request: Request) -> int | None:
    """The Content-Length of a request; None if the length is not known yet."""
    text = header_of(request.scope, b"content-length") or ""
    return int(text[:20]) if text.isdecimal() else None


def is_short(request: Request, n_bytes: int) -> bool:
    """Whether the body is known to have no more bytes than `n_bytes` before the body is read."""
    length = _announced(request)
    return length is not None and length <= n_bytes


async def read_body(
    request: Request,
    limits: BodyLimits,
    lease: Lease,
    on_piece: Callable[[bytes], None] | None = None,
) -> bytearray:
    """The whole body of a request.

    Args:
        request: the request.
        limits: of the body.
        lease: holds the body's bytes: those of its Content-Length before any is read, others as
            they come.
        on_piece: called with each piece as it comes; may raise to refuse the rest.

    Raises:
        BodyTooLarge: the body has more bytes than allowed, by its Content-Length or by count.
        BodyTimeout: the body did not arrive completely in time.
        Overloaded: the memory budget has no room for the body.
        NotReady: the server stops.
        CallerGone: the caller disconnected.
    """
    n_held = _announced(request) or 0
    if n_held > limits.max_bytes:
        raise BodyTooLarge(max_bytes=limits.max_bytes)
    lease.grow(n_held, "body")
    body = bytearray()

    def take(message: Message) -> bool:
        """Take a piece; whether more of the body is to come."""
        nonlocal body, n_held
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece: bytes = message.get("body", b"")
        if len(body) + len(piece) > limits.max_bytes:
            raise BodyTooLarge(max_bytes=limits.max_bytes)
        over = len(body) + len(piece) - n_held
        lease.grow(over, "body")
        n_held += max(0, over)
        if on_piece:
            on_piece(piece)
        body += piece
        return message.get("more_body", False)

    coming = request.receive()
    # A short body came with its head. Nothing has to wait, and no timer is set.
    if isinstance(coming, asyncio.Future) and coming.done():
        if not take(coming.result()):
            return body
        coming = request.receive()
    try:
        async with asyncio.timeout(limits.timeout_s):
            while take(await coming):
                coming = request.receive()
    except TimeoutError as exc:
        raise BodyTimeout(timeout_s=limits.timeout_s) from exc
    return body


def hang_up(request: Request) -> Awaitable[object]:
    """What completes when the caller disconnects; for a request whose body was read."""
    receive = request.receive
    # A future of our own server needs no task, and has nothing but the disconnect by then.
    is_own = isinstance(getattr(receive, "__self__", None), Exchange)
    return receive() if is_own else _disconnect(receive)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def announced_deadline_s(request: Request) -> float | None:
    """Seconds after which the caller stops waiting for an answer; None if it did not say.

    OpenAI's SDKs send their read timeout, in seconds, in the header `x-stainless-read-timeout`.
    """
    try:
        seconds = float(header_of(request.scope, b"x-stainless-read-timeout") or "")
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
