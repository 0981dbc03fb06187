"""Who calls over HTTP: the key of `Authorization: Bearer KEY`, or the password of `Basic`.

Both are how OpenAI takes a key.
"""

from __future__ import annotations

import base64
import binascii

from starlette.requests import Request

from matryo.http.context import context_of
from matryo.service import Caller


def caller_of(request: Request) -> Caller:
    """The caller of a request, by its headers.

    Raises:
        Unauthorized: the server has keys, and the request shows none of them.
    """
    return context_of(request).service.keys.caller(key_of(request.headers.get("authorization")))


def key_of(authorization: str | None) -> str:
    """The key that an `Authorization` header holds; empty if the header holds none."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    match scheme.lower():  # RFC 9110: the scheme is case-insensitive
        case "bearer":
            return rest.strip()
        case "basic":
            try:
                decoded = base64.b64decode(rest, validate=True).decode("utf-8", "surrogateescape")
            except (binascii.Error, ValueError):
                return ""
            return decoded.partition(":")[2]
        case _:
            return ""
