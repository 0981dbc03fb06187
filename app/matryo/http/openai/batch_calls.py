"""What the routes of files and of batches share: who calls, which id is meant, how to answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from matryo.core.errors import MatryoError
from matryo.service import Caller

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SHOWN = 64


def caller_in(request: Request) -> Caller:
    """The caller of a request whose key was checked."""
    return request.scope["state"]["caller"]


def owner_of(request: Request) -> str:
    """The owner of what a request makes and sees; empty if the server has no keys."""
    return caller_in(request).name or ""


def checked_id(text: str, unknown: Callable[..., MatryoError]) -> str:
    """An id of a caller's.

    Args:
        text: the id.
        unknown: makes the error of an id that nobody has.

    Raises:
        MatryoError: no id looks like this; the error of `unknown`.
    """
    if not _ID.fullmatch(text):
        raise unknown(text[:_SHOWN])
    return text


def checked_after(request: Request, unknown: Callable[..., MatryoError]) -> str | None:
    """The id that a page follows; None for the first page.

    Raises:
        MatryoError: no id looks like this; the error of `unknown`.
    """
    text = request.query_params.get("after") or None
    return text and checked_id(text, partial(unknown, param="after"))


def note(request: Request, **facts: str | int) -> None:
    """Add facts to the log line of a request."""
    request.scope["state"]["facts"].update(facts)


def json_of(answer: BaseModel, warnings: tuple[str, ...] = ()) -> Response:
    """An answer, with warnings about what was ignored."""
    headers: dict[str, Any] = {"x-matryo-warning": "; ".join(warnings)} if warnings else {}
    content = answer.model_dump_json()
    return Response(content, headers=headers, media_type="application/json")
