"""A part of a body: what the header `Range` asks for.

Source: RFC 9110, sections 13.1.5 and 14.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from matryo.core.errors import RangeNotSatisfiable
from matryo.http.heads import header_of

_ONE_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)


def range_of(request: Request, n_bytes: int, etag: str) -> tuple[int, int] | None:
    """The first byte and the end of the part that a request asks for; None for the whole body.

    A header that cannot be read, that asks for several parts, or whose `If-Range` is of another
    body is answered with the whole body, which the RFC allows.

    Args:
        request: the request.
        n_bytes: of the whole body.
        etag: of the body, with its quotes.

    Raises:
        RangeNotSatisfiable: the body ends before the part begins.
    """
    found = _ONE_RANGE.fullmatch((header_of(request.scope, b"range") or "").strip())
    if not found or not any(found.groups()):
        return None
    if (header_of(request.scope, b"if-range") or etag).strip() != etag:
        return None
    first, last = found.groups()
    if first:
        start = int(first)
        end = n_bytes if not last else min(n_bytes, int(last) + 1)
        if last and int(last) < start:
            return None
    else:  # the last so many bytes
        start, end = max(0, n_bytes - int(last)), n_bytes
    if start >= end:
        raise RangeNotSatisfiable(n_bytes=n_bytes)
    return start, end
