"""The headers of a request, found by name without a look at each of them."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

_INDEX = "matryo.headers"


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first value of a header; None if the request has no such header.

    Args:
        scope: of the request.
        name: in lower case.
    """
    index: dict[bytes, bytes] | None = scope.get(_INDEX)
    if index is None:
        headers: list[Any] = list(scope["headers"])
        headers.reverse()  # of equal names, the first stays
        index = scope[_INDEX] = dict(headers)
    value = index.get(name)
    return None if value is None else value.decode("latin-1")


def values_of(scope: Scope, name: bytes) -> list[str]:
    """Every value of a header.

    Args:
        scope: of the request.
        name: in lower case.
    """
    if header_of(scope, name) is None:
        return []
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
