"""Who calls over HTTP, by the key in `Authorization` or in `api-key`.

OpenAI takes a key as `Authorization: Bearer KEY` or as the password of `Basic`, Azure as `api-key`.
"""

from __future__ import annotations

from starlette.requests import Request

from matryo.http.context import context_of
from matryo.http.heads import header_of
from matryo.service import Caller
from matryo.service.keys import key_of


def caller_of(request: Request) -> Caller:
    """The caller of a request, by its headers.

    Raises:
        Unauthorized: the server has keys, and the request shows none of them.
    """
    scope = request.scope
    key = key_of(header_of(scope, b"authorization")) or (header_of(scope, b"api-key") or "").strip()
    return context_of(request).service.keys.caller(key)
