"""Reads a request's body within limits, and finds out when its caller stops waiting."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import Request
from starlette.types import Message, Receive

from matryo.core.budget import Lease
from matryo.core.errors import (
    BodyTimeout,
    BodyTooLarge,
    CallerGone,
    FileTooLarge,
    UnsupportedMedia,
    UploadTooSlow,
)
from matryo.http.context import BodyLimits
from matryo.http.exchange import Exchange
from matryo.http.heads import header_of


def check_media(request: Request) -> None:
    """Refuse a body that is not plain JSON. A request without Content-Type is accepted.

    Raises:
        UnsupportedMedia: the Content-Type is not JSON, or the body is compressed.
    """
    check_encoding(request)
    media = _media(request)
    if media and media != "application/json" and not media.endswith("+json"):
        raise _unsupported(media, "application/json")


def check_encoding(request: Request) -> None:
    """Refuse a compressed body.

    Raises:
        UnsupportedMedia: the body is compressed.
    """
    encoding = (header_of(request.scope, b"content-encoding") or "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(
            f"Unsupported Content-Encoding: {encoding[:64]!r}. Send the body uncompressed.",
            code="unsupported_content_encoding",
        )


def check_form(request: Request) -> str:
    """The Content-Type of a request whose body is a multipart form.

    Raises:
        UnsupportedMedia: the body is no such form, or is compressed.
    """
    check_encoding(request)
    media = _media(request)
    if media != "multipart/form-data":
        raise _unsupported(media, "multipart/form-data")
    return header_of(request.scope, b"content-type") or ""


def _media(request: Request) -> str:
    content_type = header_of(request.scope, b"content-type") or ""
    return content_type.partition(";")[0].strip().lower()


def _unsupported(media: str, accepted: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        f"Unsupported content type: {media[:64]!r}. This API method only accepts '{accepted}' "
        f"requests. Send the header 'Content-Type: {accepted}'.",
        code="unsupported_content_type",
    )


def announced_bytes(request: Request) -> int | None:
    """The Content-Length of a request; None if the length is not known yet."""
    text = header_of(request.scope, b"content-length") or ""
    return int(text[:20]) if text.isdecimal() else None


def is_short(request: Request, n_bytes: int) -> bool:
    """Whether the body is known to have no more bytes than `n_bytes` before the body is read."""
    length = announced_bytes(request)
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
    n_held = announced_bytes(request) or 0
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


async def arriving(
    request: Request, *, max_bytes: int, more_bytes: int, patience_s: float, min_rate: int
) -> AsyncGenerator[bytes, None]:
    """The pieces of a body with a file, as they come; no more is read while a piece is in work.

    Args:
        request: the request.
        max_bytes: of the file.
        more_bytes: that the body may have beside the file.
        patience_s: seconds for the next piece, and before the rate counts.
        min_rate: bytes a second at which the body must come on average.

    Raises:
        FileTooLarge: the body has more bytes than allowed, by its Content-Length or by count.
        UploadTooSlow: the body comes too slowly.
        NotReady: the server stops.
        CallerGone: the caller disconnected.
    """
    if (announced_bytes(request) or 0) > max_bytes + more_bytes:
        raise FileTooLarge(max_bytes=max_bytes)
    n_bytes, waited_s, more = 0, 0.0, True
    while more:
        allowed_s = patience_s + n_bytes / min_rate - waited_s
        started = time.monotonic()
        try:
            async with asyncio.timeout(min(patience_s, allowed_s)):
                message = await request.receive()
        except TimeoutError as exc:
            raise UploadTooSlow(timeout_s=patience_s, min_rate=min_rate) from exc
        waited_s += time.monotonic() - started
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        n_bytes += len(piece)
        if n_bytes > max_bytes + more_bytes:
            raise FileTooLarge(max_bytes=max_bytes)
        yield piece


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
