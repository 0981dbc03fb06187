"""The page for people: its routes, their headers, and who may read it."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest

from matryo.http.page.routes import FOLDER, INDEX, TYPES
from tests.contract.conftest import client_of, live_server
from tests.fakes import FakeEngine

MOST_BYTES = 150_000
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'self'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


def test_each_file_has_a_type() -> None:
    """Every file that is shipped is served, and every file that is served is shipped."""
    shipped = {path.name for path in FOLDER.iterdir()}
    assert shipped == {INDEX, *TYPES}


def test_size() -> None:
    """All files together are small enough to be read through a slow line."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


def test_nothing_is_inline() -> None:
    """The HTML has no script, style or handler of its own, which the policy would block."""
    html = (FOLDER / INDEX).read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    assert not re.search(r"https?://", html)


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/page.css"])
async def test_gzip(client: httpx2.AsyncClient, path: str) -> None:
    """A browser that takes gzip gets the same bytes in fewer; others get the file as it is."""
    plain = await client.get(path, headers={"accept-encoding": "br, gzip;q=0.00"})
    packed = await client.get(path, headers={"accept-encoding": "deflate, GZIP;q=0.5"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    for answer in (plain, packed):
        assert answer.headers["vary"] == "accept-encoding"
        assert answer.headers["etag"].startswith("W/")


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in TYPES)])
async def test_files(client: httpx2.AsyncClient, path: str) -> None:
    """Each file comes with its type, the policy and a tag; the tag saves the second way."""
    answer = await client.get(path)
    assert answer.status_code == 200
    headers = answer.headers
    expected = TYPES.get(path.removeprefix("/page/"), "text/html; charset=utf-8")
    assert headers["content-type"] == expected
    assert set(headers["content-security-policy"].split("; ")) == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"
    etag = headers["etag"]
    for tags in (etag, f'"other", {etag}', etag.removeprefix("W/"), "*"):
        again = await client.get(path, headers={"if-none-match": tags})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["content-security-policy"] == headers["content-security-policy"]
    assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200


def test_head(engine: FakeEngine) -> None:
    """HEAD has the headers of GET and no body."""
    with live_server(engine) as live, httpx2.Client(base_url=live.url) as client:
        for path in ("/", "/page/app.js"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            for name in ("etag", "content-length", "content-type", "content-security-policy"):
                assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "index.html",
        "nothing.js",
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/routes.py",
        "app.js/",
    ],
)
async def test_no_other_file(client: httpx2.AsyncClient, name: str) -> None:
    """Below `/page/` there is nothing but the files of the page."""
    assert (await client.get(f"/page/{name}")).status_code == 404


async def test_facts(engine: FakeEngine) -> None:
    """The HTML says whether keys are asked for, and where the metrics are; nothing else."""

    async def facts(**changes: Any) -> list[str]:
        async with client_of(engine, **changes) as client:
            html = (await client.get("/")).text
        assert "{" not in html
        return re.findall(r' data-(?:keys|metrics)="(\w+)"', html)

    assert await facts() == ["no", "here"]
    assert await facts(api_keys="secret") == ["yes", "here"]
    assert await facts(keys=f'team = {{ sha256 = "{64 * "0"}" }}') == ["yes", "here"]
    assert await facts(metrics_key="m") == ["no", "key"]
    assert await facts(metrics_port=0, metrics_key="m") == ["no", "elsewhere"]


async def test_keys(engine: FakeEngine) -> None:
    """A server with keys gives its page to everybody: the page has nothing of the server."""
    async with client_of(engine, api_keys="secret") as client:
        for path in ("/", "/page/app.js", "/page/page.css"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert "secret" not in answer.text
        assert (await client.get("/v1/models")).status_code == 401


async def test_off(engine: FakeEngine) -> None:
    """`MATRYO_PAGE=false` takes the page away, and the link to it; `POST /` stays."""
    async with client_of(engine, page=False) as client:
        for path in ("/", "/page/app.js"):
            for method in ("GET", "HEAD"):
                assert (await client.request(method, path)).status_code == 404
        assert "href=./" not in (await client.get("/docs")).text
        assert (await client.post("/", json={"inputs": "a"})).status_code == 200


async def test_beside_tei(client: httpx2.AsyncClient) -> None:
    """`POST /` is still TEI's, and another method is told of all that `/` takes."""
    assert (await client.post("/", json={"inputs": "a"})).status_code == 200
    wrong = await client.put("/")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "GET, HEAD, POST"


async def test_linked(client: httpx2.AsyncClient) -> None:
    """Page and reference lead to each other, and the document does not name the page."""
    assert "href=./" in (await client.get("/docs")).text
    assert 'href="docs"' in (await client.get("/")).text
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


@pytest.mark.parametrize("prefix", ["/emb", "/page", "/a/page"])
async def test_behind_a_prefix(engine: FakeEngine, prefix: str) -> None:
    """The page names the prefix as its base; its files are there with the prefix and without it."""
    async with client_of(engine, root_path=prefix) as client:
        for path in ("/", prefix + "/", prefix):
            html = (await client.get(path)).text
            assert f'<base href="{prefix}/">' in html
        for path in (f"{prefix}/page/app.js", "/page/app.js", f"{prefix}/livez"):
            assert (await client.get(path)).status_code == 200
    async with client_of(engine) as client:
        assert "<base" not in (await client.get("/")).text


async def test_counted(client: httpx2.AsyncClient) -> None:
    """Views of the page are no calls of the API: they are the door `operations`, in two routes."""
    for path in ("/", "/page/app.js", "/page/page.css"):
        await client.get(path)
    text = (await client.get("/metrics")).text
    for route, count in (("/", 1), ("/page/", 2)):
        pattern = f'door="operations",model="",route="{route}",status="200"}} {count}.0'
        assert f"matryo_requests_total{{{pattern}" in text
