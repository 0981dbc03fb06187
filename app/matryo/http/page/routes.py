"""The page for people at `/`, and its files below `/page/`; none of them asks for a key.

The page holds nothing of the server but the facts in `PageFacts`. Whatever else it shows, its
scripts ask the API for, with the key that the reader types in.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matryo.http.heads import values_of

FOLDER = Path(__file__).with_name("assets")
INDEX = "index.html"
PREFIX = "/page/"

_SCRIPT = "text/javascript; charset=utf-8"
_STYLE = "text/css; charset=utf-8"
TYPES: Mapping[str, str] = {
    "api.js": _SCRIPT,
    "app.js": _SCRIPT,
    "choose.css": _STYLE,
    "choose.js": _SCRIPT,
    "documents.js": _SCRIPT,
    "code.js": _SCRIPT,
    "dom.js": _SCRIPT,
    "icon.svg": "image/svg+xml",
    "map.js": _SCRIPT,
    "metrics.js": _SCRIPT,
    "now.js": _SCRIPT,
    "numbers.js": _SCRIPT,
    "page.css": _STYLE,
    "plane.js": _SCRIPT,
    "prefixes.js": _SCRIPT,
    "ranks.js": _SCRIPT,
    "reading.js": _SCRIPT,
    "sample.js": _SCRIPT,
    "similarity.js": _SCRIPT,
    "tokens.js": _SCRIPT,
    "try.js": _SCRIPT,
}
"""The media type of each file below `/page/`; a name that is not here has no file."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}
"""Of every answer: a browser fetches nothing from elsewhere, and asks whether a file is new."""


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What the page must know before its reader has typed in a key.

    Attributes:
        version: of Matryo.
        has_keys: whether the API asks for a key.
        metrics: `here`: anyone may read `/metrics`; `key`: it asks for a key of its own;
            `elsewhere`: it has a port of its own, which the page cannot reach.
        prefix: of every path, for callers of a proxy; empty for none.
    """

    version: str
    has_keys: bool
    metrics: Literal["here", "key", "elsewhere"]
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """A file as a browser gets it."""

    content: bytes
    gzipped: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 if the browser has it already."""
        headers = {**HEADERS, "etag": self.etag}
        if _has(values_of(request.scope, b"if-none-match"), self.etag):
            return Response(status_code=304, headers=headers)
        headers["content-type"] = self.media_type
        if _takes_gzip(values_of(request.scope, b"accept-encoding")):
            return Response(self.gzipped, headers={**headers, "content-encoding": "gzip"})
        return Response(self.content, headers=headers)


def _has(values: list[str], etag: str) -> bool:
    """Whether a browser has the file with the tag; a proxy may have weakened the tag."""
    tags = [tag.strip().removeprefix("W/") for value in values for tag in value.split(",")]
    return etag.removeprefix("W/") in tags or "*" in tags


def _takes_gzip(values: list[str]) -> bool:
    """Whether a browser takes gzip: it names gzip, and no weight of 0 behind the name."""
    for value in values:
        for coding in value.split(","):
            name, _, weight = coding.partition(";")
            if name.strip().lower() == "gzip":
                return weight.strip().lower().rstrip("0.") != "q="
    return False


def _file(content: bytes, media_type: str) -> _File:
    # A weak tag, because it stands for the bytes with and without gzip.
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, gzip.compress(content, mtime=0), media_type, etag)


def _index(facts: PageFacts) -> bytes:
    """The page's HTML with the facts in the places that it has for them."""
    html = (FOLDER / INDEX).read_text("utf-8")
    base = f'<base href="{escape(facts.prefix)}/">' if facts.prefix else ""
    for place, text in (
        ("<!--base-->\n", base and f"{base}\n"),
        ("{version}", escape(facts.version)),
        ("{keys}", "yes" if facts.has_keys else "no"),
        ("{metrics}", facts.metrics),
    ):
        html = html.replace(place, text)
    return html.encode()


def build_routes(facts: PageFacts) -> list[Route]:
    """The routes of the page; each file is read when it is first asked for.

    Each file has a route of its own: a route for any name would take the paths of a proxy's prefix
    `/page`.

    Args:
        facts: what the page says of the server.
    """

    @cache
    def page_file() -> _File:
        return _file(_index(facts), "text/html; charset=utf-8")

    @cache
    def asset(path: str) -> _File:
        name = path.removeprefix(PREFIX)
        return _file((FOLDER / name).read_bytes(), TYPES[name])

    async def page(request: Request) -> Response:
        """The page."""
        return page_file().answer(request)

    async def file(request: Request) -> Response:
        """A file of the page."""
        return asset(request.scope["path"]).answer(request)

    # Starlette's: FastAPI would look at the endpoint of each, which takes part of a server's start.
    routes = [Route("/", page, methods=["GET"], name="/")]
    routes += [Route(PREFIX + name, file, methods=["GET"], name=PREFIX) for name in TYPES]
    return routes
