"""Behind a proxy: who calls, by which scheme, below which path."""

from __future__ import annotations

import logging
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings
from tests.contract.conftest import Live, client_of, live_server, settings, wait_until
from tests.fakes import FakeEngine

HEADERS = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}


def seen(live: Live, caplog: pytest.LogCaptureFixture, headers: dict[str, str]) -> str:
    """The address that the log has for a request with these headers."""
    caplog.set_level(logging.INFO, "matryo.request")
    caplog.clear()
    answer = httpx2.get(f"{live.url}/v1/models", headers=headers)
    assert answer.status_code == 200
    wait_until(lambda: caplog.records)  # the line follows the answer
    return vars(caplog.records[-1])["client"]


class TestCaller:
    """The address in the log."""

    def test_trusted(self, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
        """A proxy on this machine is trusted by default."""
        with live_server(engine, log_client=True) as live:
            assert seen(live, caplog, HEADERS) == "203.0.113.7"
            assert seen(live, caplog, {"forwarded": "for=203.0.113.8"}) == "203.0.113.8"

    @pytest.mark.parametrize("allowed", ["none", "10.0.0.0/8"])
    def test_untrusted(
        self, engine: FakeEngine, caplog: pytest.LogCaptureFixture, allowed: str
    ) -> None:
        """What any other peer says of itself is ignored."""
        with live_server(engine, log_client=True, forwarded_allow_ips=allowed) as live:
            assert seen(live, caplog, HEADERS) == "127.0.0.1"

    @pytest.mark.parametrize(
        ("allowed", "scheme"), [("127.0.0.1,10.0.0.0/8", "https"), ("none", "http")]
    )
    def test_scheme(self, engine: FakeEngine, allowed: str, scheme: str) -> None:
        """The scheme of a request is the one of the proxy's headers, if the proxy is trusted."""
        schemes: list[str] = []

        def create(chosen: Settings, engines: Any) -> FastAPI:
            from matryo.main import create_app

            application = create_app(chosen, engines)
            inner = application.build_middleware_stack()

            async def noting(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    schemes.append(scope["scheme"])
                await inner(scope, receive, send)

            application.middleware_stack = noting
            return application

        with live_server(engine, create=create, forwarded_allow_ips=allowed) as live:
            httpx2.get(f"{live.url}/livez", headers=HEADERS)
        assert schemes == [scheme]

    def test_a_wrong_word(self) -> None:
        """A word that is no address is refused at the start, in words."""
        with pytest.raises(
            SettingsInvalid, match=r"--forwarded-allow-ips has .proxy\.local., which"
        ):
            settings(forwarded_allow_ips="127.0.0.1,proxy.local")


class TestRootPath:
    """A proxy's prefix."""

    @pytest.mark.parametrize("path", ["/v1/models", "/livez", "/models", "/docs", "/openapi.json"])
    async def test_with_and_without(self, engine: FakeEngine, path: str) -> None:
        """Paths are answered as they are, and with the prefix that a proxy passes on."""
        async with client_of(engine, root_path="/api/embeddings-service/") as client:
            assert (await client.get(path)).status_code == 200
            assert (await client.get(f"/api/embeddings-service{path}")).status_code == 200
            for other in (f"/api{path}", f"/api/embeddings-servicex{path}", f"/other{path}"):
                assert (await client.get(other)).status_code == 404

    async def test_vectors(self, engine: FakeEngine) -> None:
        """A vector is the same below the prefix, and errors have their door's form."""
        async with client_of(engine, root_path="/prefix") as client:
            asked = {"input": "a"}
            plain = await client.post("/v1/embeddings", json=asked)
            prefixed = await client.post("/prefix/v1/embeddings", json=asked)
            assert prefixed.json() == plain.json()
            wrong = await client.post("/prefix/embed", json={"inputs": 1})
            assert "error_type" in wrong.json()

    @pytest.mark.parametrize(
        ("root", "path"),
        [
            ("/v1", "/v1/models"),  # a proxy that strips /v1 from /v1/v1/models
            ("/v1", "/v1/v1/models"),  # a proxy that does not
            ("/v1", "/models"),
            ("/openai", "/openai/openai/deployments/x/embeddings"),
            ("/openai", "/openai/deployments/x/embeddings"),
        ],
    )
    async def test_a_prefix_like_our_own(self, engine: FakeEngine, root: str, path: str) -> None:
        """A prefix that is the beginning of the server's own paths hides none of them."""
        async with client_of(engine, root_path=root) as client:
            assert (await client.get(path)).status_code in (200, 405)

    async def test_metrics(self, engine: FakeEngine) -> None:
        """A route below the prefix is counted as that route."""
        async with client_of(engine, root_path="/prefix") as client:
            await client.get("/prefix/v1/models")
            text = (await client.get("/metrics")).text
            assert 'route="/v1/models"' in text
            assert 'route="/prefix' not in text

    async def test_document(self, engine: FakeEngine) -> None:
        """The document and its page name the prefix; without one they name no server."""
        async with client_of(engine, root_path="/prefix") as client:
            document = (await client.get("/prefix/openapi.json")).json()
            assert document["servers"] == [{"url": "/prefix"}]
            page = (await client.get("/prefix/docs")).text
            assert "$URL/prefix/v1/embeddings" in page
            assert "href=openapi.json" in page  # below the prefix, as the page is
        async with client_of(engine) as client:
            assert "servers" not in (await client.get("/openapi.json")).json()

    @pytest.mark.parametrize("value", ["prefix", "https://x/y", "/a//b", "/a b", "/a?b", "/%61"])
    def test_no_prefix(self, value: str) -> None:
        """What cannot begin a path is refused at the start, in words."""
        with pytest.raises(SettingsInvalid, match=r"--root-path is .*, which is no prefix"):
            settings(root_path=value)

    @pytest.mark.parametrize("value", ["/", "//"])
    def test_slashes(self, value: str) -> None:
        """Slashes alone are no prefix."""
        assert settings(root_path=value).root_path is None
