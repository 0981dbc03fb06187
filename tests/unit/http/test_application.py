"""Which route answers a request, and what its headers say."""

from __future__ import annotations

from typing import Any

from starlette.routing import Match

from matryo.core.environment import load_settings
from matryo.http.application import direct_routes
from matryo.http.heads import header_of, values_of
from matryo.main import create_app
from tests.fakes import FakeEngine


def test_direct_routes_are_the_routers() -> None:
    """A route that is found by its path is the one that the router would have chosen."""
    routes = create_app(load_settings(None), FakeEngine()).routes
    found = direct_routes(routes)
    assert ("POST", "/v1/embeddings") in found
    assert ("POST", "/embed") in found
    for (method, path), route in found.items():
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
        first = next(one for one in routes if one.matches(scope)[0] is Match.FULL)
        assert first is route


def test_headers() -> None:
    """Of equal headers the first counts alone, and all of them as a list; a name may be absent."""
    scope: dict[str, Any] = {"headers": [(b"accept", b"a"), (b"x", b"\xe9"), (b"accept", b"b")]}
    assert header_of(scope, b"accept") == "a"
    assert header_of(scope, b"x") == "\u00e9"
    assert header_of(scope, b"y") is None
    assert values_of(scope, b"accept") == ["a", "b"]
    assert values_of(scope, b"y") == []
