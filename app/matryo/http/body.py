"""Reading a request's body within its bounds, and what its caller says of its patience."""

from __future__ import annotations

import asyncio
import math

from starlette.requests import ClientDisconnect, Request

from matryo.core.errors import BodyTimeout, BodyTooLarge, CallerGone, UnsupportedMedia
from matryo.http.context import BodyLimits


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


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: more bytes than allowed; known from the header where there is one.
        BodyTimeout: not all of it came in time.
        CallerGone: the caller hung up.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.max_bytes:
        raise BodyTooLarge(max_bytes=limits.max_bytes)
    pieces: list[bytes] = []
    n_bytes = 0
    try:
        async with asyncio.timeout(limits.timeout_s):
            async for piece in request.stream():
                n_bytes += len(piece)
                if n_bytes > limits.max_bytes:
                    raise BodyTooLarge(max_bytes=limits.max_bytes)
                pieces.append(piece)
    except TimeoutError as exc:
        raise BodyTimeout(timeout_s=limits.timeout_s) from exc
    except ClientDisconnect as exc:
        raise CallerGone from exc
    return b"".join(pieces)


async def hang_up(request: Request) -> None:
    """Return when the caller hangs up.

    The body must have been read: after the body, `receive` has nothing else to say.
    """
    while (await request.receive())["type"] != "http.disconnect":
        pass


def announced_deadline_s(request: Request) -> float | None:
    """Seconds after which the caller, by its own announcement, stops waiting; None for never.

    OpenAI's SDKs send their read timeout, in seconds, as `x-stainless-read-timeout`.
    """
    try:
        seconds = float(request.headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
