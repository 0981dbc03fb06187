"""Reading a request's body within its bounds, and noticing that the caller hung up."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from matryo.core.errors import BodyTimeout, BodyTooLarge, DeadlinePassed, UnsupportedMedia
from matryo.http.context import Limits
from matryo.http.middleware import ClientGone

T = TypeVar("T")


def check_media(request: Request) -> None:
    """Refuse what is not plain JSON; no Content-Type at all is let pass.

    Raises:
        UnsupportedMedia: another type, or a compressed body.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(
            f"Unsupported Content-Encoding: {encoding[:64]!r}. Send the body uncompressed.",
            code="unsupported_content_encoding",
        )
    content_type = request.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(
            f"Unsupported content type: {media[:64]!r}. This API method only accepts "
            "'application/json' requests. Send the header 'Content-Type: application/json'.",
            code="unsupported_content_type",
        )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: more bytes than allowed; told from the header where there is one.
        BodyTimeout: not all of it came in time.
        ClientGone: the caller hung up.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.max_body_bytes:
        raise BodyTooLarge(max_bytes=limits.max_body_bytes)
    pieces: list[bytes] = []
    n_bytes = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for piece in request.stream():
                n_bytes += len(piece)
                if n_bytes > limits.max_body_bytes:
                    raise BodyTooLarge(max_bytes=limits.max_body_bytes)
                pieces.append(piece)
    except TimeoutError as exc:
        raise BodyTimeout(timeout_s=limits.body_timeout_s) from exc
    except ClientDisconnect as exc:
        raise ClientGone from exc
    return b"".join(pieces)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it as soon as the caller hangs up.

    The body must have been read: after it, `receive` has nothing but the hanging up to say.

    Raises:
        ClientGone: the caller hung up first.
    """
    task = asyncio.current_task()
    assert task
    gone = False

    def hung_up(_: asyncio.Future[None]) -> None:
        nonlocal gone
        gone = True
        task.cancel()

    watching = asyncio.ensure_future(_hang_up(request))
    watching.add_done_callback(hung_up)
    try:
        return await work
    except asyncio.CancelledError:
        # As asyncio.timeout has it: only the cancellation that is ours becomes an error.
        if gone and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        watching.remove_done_callback(hung_up)
        watching.cancel()


@contextlib.asynccontextmanager
async def deadline(request: Request) -> AsyncGenerator[None, None]:
    """Cancel the block when the caller, by its own announcement, has stopped waiting.

    OpenAI's SDKs send their read timeout, in seconds, as `x-stainless-read-timeout`.

    Raises:
        DeadlinePassed: the block was not done in time.
    """
    timeout_s = _seconds(request.headers.get("x-stainless-read-timeout", ""))
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as exc:
        raise DeadlinePassed(timeout_s=timeout_s or 0.0) from exc


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
