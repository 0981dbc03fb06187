"""Who calls over HTTP, by the key in `Authorization` or in `api-key`.

OpenAI takes a key as `Authorization: Bearer KEY` or as the password of `Basic`, Azure as `api-key`.
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
    headers = request.headers
    key = key_of(headers.get("authorization")) or headers.get("api-key", "").strip()
    return context_of(request).service.keys.caller(key)


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
