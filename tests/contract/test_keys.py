"""Keys and limits at every door, and keys that change while callers go on."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from matryo.core.errors import SettingsInvalid
from matryo.engine import Engine
from matryo.main import create_app, create_mcp_app
from tests.contract.conftest import (
    Live,
    client_of,
    live_server,
    openai_of,
    settings,
    wait_until,
)
from tests.contract.test_mcp import client_over_http, words
from tests.fakes import MINILM, NOMIC, FakeEngine

URL = "/v1/embeddings"
PREDICT = "/predict"


def line(name: str, limits: str = "", key: str | None = None) -> str:
    """A line of a file of keys; the key is `sk-` and the name."""
    digest = hashlib.sha256((key or f"sk-{name}").encode()).hexdigest()
    return f'{name} = {{ sha256 = "{digest}"{limits} }}'


def auth(name: str) -> dict[str, str]:
    """The header of a key of `line`."""
    return {"authorization": f"Bearer sk-{name}"}


async def post(client: httpx2.AsyncClient, name: str, text: str = "a", **more: Any) -> Any:
    """The answer to one text."""
    return await client.post(URL, json={"input": text} | more, headers=auth(name))


class TestLimits:
    """What a key may use, over HTTP."""

    async def test_requests(self, engine: FakeEngine) -> None:
        """Headers count down; then 429 with OpenAI's type and code, and a wait that is true."""
        keys = line("a", ", requests_per_minute = 2, tokens_per_minute = 1000")
        async with client_of(engine, keys=keys) as client:
            first = await post(client, "a")
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert first.headers["x-ratelimit-limit-tokens"] == "1000"
            used = first.json()["usage"]["prompt_tokens"]
            assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
            assert re.fullmatch(r"\d+(\.\d+)?s|1m0s", first.headers["x-ratelimit-reset-requests"])
            await post(client, "a")
            refused = await post(client, "a")
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
            assert "on requests per min (RPM): Limit 2, Used 2, Requested 1." in error["message"]
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            wait_ms = int(refused.headers["retry-after-ms"])
            assert 0 < wait_ms <= 30_000
            assert int(refused.headers["retry-after"]) == -(-wait_ms // 1000)
            metrics = (await client.get("/metrics")).text
            for sample in (
                'matryo_rejections_total{reason="rate_requests"} 1.0',
                'matryo_caller_rejections_total{key="a",reason="rate_requests"} 1.0',
                'matryo_caller_requests_total{key="a",status="200"} 2.0',
                'matryo_caller_requests_total{key="a",status="429"} 1.0',
                f'matryo_caller_tokens_total{{key="a"}} {2 * used}.0',
                "matryo_keys_loaded 1.0",
            ):
                assert sample in metrics

    async def test_before_the_body(self, engine: FakeEngine) -> None:
        """The body of a request over the limit is not read."""

        async def body() -> AsyncIterator[bytes]:
            pytest.fail("the body was read")
            yield b""

        async with client_of(engine, keys=line("a", ", requests_per_minute = 1")) as client:
            await post(client, "a")
            refused = await client.post(URL, content=body(), headers=auth("a"))
            assert refused.status_code == 429

    async def test_tokens(self, engine: FakeEngine) -> None:
        """A request with more tokens than are left is refused before it runs, and charged nothing."""
        keys = line("a", ", tokens_per_minute = 20")
        async with client_of(engine, keys=keys) as client:
            left = int((await post(client, "a", "b " * 6)).headers["x-ratelimit-remaining-tokens"])
            assert 0 < left < 15
            n_runs = len(engine.batches)
            refused = await post(client, "a", "c " * 14)
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
            assert len(engine.batches) == n_runs
            assert int(refused.headers["x-ratelimit-remaining-tokens"]) >= left
            large = await post(client, "a", "d " * 40)
            assert large.status_code == 429
            assert "Request too large" in large.json()["error"]["message"]
            assert large.headers["x-should-retry"] == "false"
            assert "retry-after" not in large.headers

    async def test_quota(self, engine: FakeEngine) -> None:
        """A used up quota has OpenAI's code, and the official client does not try again."""
        async with client_of(engine, keys=line("a", ", tokens_per_day = 10")) as client:
            sdk = openai_of(client, api_key="sk-a", max_retries=2)
            await sdk.embeddings.create(model=NOMIC.id, input="b c d")
            with pytest.raises(openai.RateLimitError) as refused:
                await sdk.embeddings.create(model=NOMIC.id, input="b c d e f g h")
            assert (refused.value.type, refused.value.code) == (
                "insufficient_quota",
                "insufficient_quota",
            )
            assert 0 < int(refused.value.response.headers["retry-after"]) <= 86_400
            metrics = (await client.get("/metrics")).text
            assert 'matryo_caller_requests_total{key="a",status="429"} 1.0' in metrics

    async def test_others_are_free(self, engine: FakeEngine) -> None:
        """A key has its own limits, and a key without limits has no headers of limits."""
        keys = "\n".join((line("a", ", requests_per_minute = 1"), line("b")))
        async with client_of(engine, keys=keys) as client:
            assert [(await post(client, "a")).status_code for _ in range(2)] == [200, 429]
            for _ in range(3):
                answer = await post(client, "b")
                assert answer.status_code == 200
                assert not [name for name in answer.headers if name.startswith("x-ratelimit")]

    async def test_every_answer_has_headers(self, engine: FakeEngine) -> None:
        """Errors and lists of models say what is left as well, and a list costs no request."""
        async with client_of(engine, keys=line("a", ", requests_per_minute = 5")) as client:
            failed = await client.post(URL, content=b"{", headers=auth("a"))
            assert failed.status_code in (400, 415)
            unknown = await post(client, "a", model="nobody")
            assert unknown.status_code == 404
            models = await client.get("/v1/models", headers=auth("a"))
            left = [
                answer.headers["x-ratelimit-remaining-requests"]
                for answer in (failed, unknown, models)
            ]
            assert left == ["4", "3", "3"]

    async def test_failures_cost_no_tokens(self, engine: FakeEngine) -> None:
        """Tokens of a run that failed come back to the key."""

        def fail(_: object) -> None:
            raise RuntimeError("broken")

        keys = line("a", ", tokens_per_minute = 60000")
        async with client_of(engine, keys=keys) as client:
            engine.before = fail
            assert (await post(client, "a", "b " * 400)).status_code == 500
            engine.before = lambda _: None
            answer = await post(client, "a")
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 59_900

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/embed", {"inputs": "a"}),
            ("/predict", {"inputs": ["a"]}),
            ("/tokenize", {"inputs": "a"}),
        ],
    )
    async def test_other_doors(self, engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
        """TEI's and Encoderfile's routes hold the same limit, in their words."""
        async with client_of(engine, keys=line("a", ", requests_per_minute = 1")) as client:
            answers = [await client.post(path, json=body, headers=auth("a")) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 429]
            assert "on requests per min" in answers[1].text
            assert int(answers[1].headers["retry-after-ms"]) > 0
            assert (await post(client, "a")).status_code == 429


class TestModels:
    """Models that a key may use."""

    async def test_forbidden(self, engine: FakeEngine) -> None:
        """Another model is 403 `model_not_found`, as OpenAI's API answers, and is not listed."""
        engines: list[Engine] = [engine, FakeEngine(MINILM)]
        keys = line("a", f', models = ["{MINILM.id}"]')
        async with client_of(engines, keys=keys) as client:
            sdk = openai_of(client, api_key="sk-a")
            assert [model.id async for model in sdk.models.list()] == [MINILM.id]
            assert len((await sdk.embeddings.create(model=MINILM.id, input="a")).data) == 1
            for call in (
                sdk.embeddings.create(model=NOMIC.id, input="a"),
                sdk.embeddings.create(model="text-embedding-3-small", input="a"),
                sdk.models.retrieve(NOMIC.id),
            ):
                with pytest.raises(openai.PermissionDeniedError) as refused:
                    await call
                assert (refused.value.code, refused.value.type) == (
                    "model_not_found",
                    "invalid_request_error",
                )
            for path, body in (("/embed", {"inputs": "a"}), ("/predict", {"inputs": ["a"]})):
                answer = await client.post(path, json=body, headers=auth("a"))
                assert answer.status_code == 403
            assert not engine.batches[2:]  # those of the start


class TestSources:
    """Where keys come from."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A file with one key."""
        file = tmp_path / "keys.toml"
        file.write_text(line("a"))
        return file

    async def test_together(
        self, engine: FakeEngine, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """File, lines and bare keys all count; the log has the name, and never the key."""
        caplog.set_level(logging.INFO)
        bare = "sk-bare-0123456789abcd"
        async with client_of(engine, keys_file=file, keys=line("b"), api_keys=bare) as client:
            for key in ("sk-a", "sk-b", bare):
                answer = await client.post(
                    URL, json={"input": "x"}, headers={"authorization": f"Bearer {key}"}
                )
                assert answer.status_code == 200
            assert (await post(client, "c")).status_code == 401
        found = [
            record.__dict__.get("key")
            for record in caplog.records
            if record.name == "matryo.request"
        ]
        assert found == ["a", "b", "sk-b***abcd", None]
        assert bare not in caplog.text

    @pytest.mark.parametrize("text", ["", "# none\n", "a = 5", "a = {"])
    def test_never_open(self, engine: FakeEngine, file: Path, text: str) -> None:
        """A file without a key, or a wrong one, ends the start, and so does a file that is not there."""
        file.write_text(text)
        with pytest.raises(SettingsInvalid, match=r"keys\.toml"):
            create_app(settings(keys_file=file), engine)
        with pytest.raises(SettingsInvalid, match=r"keys\.toml"):
            create_app(settings(keys_file=file, api_keys="sk-good"), engine)
        file.unlink()
        with pytest.raises(SettingsInvalid, match="No such file"):
            create_mcp_app(settings(keys_file=file), engine)

    async def test_expired(self, engine: FakeEngine) -> None:
        """A key past its time gets 401 that says so, over HTTP."""
        keys = line("a", ", expires = 2020-01-31T00:00:00Z")
        async with client_of(engine, keys=keys) as client:
            refused = await post(client, "a")
            assert refused.status_code == 401
            assert "expired at 2020-01-31T00:00:00Z" in refused.json()["error"]["message"]


class TestTools:
    """Limits over the Model Context Protocol."""

    async def test_limit(self, engine: FakeEngine) -> None:
        """A call of a tool is a request of the key that the call's own HTTP request shows."""
        keys = "\n".join((line("a", ", requests_per_minute = 2"), line("b")))
        with live_server(engine, create=create_mcp_app, keys=keys) as live:
            arguments = {"a": "x", "b": "y"}
            async with client_over_http(live, auth("a")) as client:
                for _ in range(2):
                    assert not (await client.call_tool("similarity", arguments)).is_error
                refused = await client.call_tool("similarity", arguments)
                assert "on requests per min (RPM): Limit 2" in words(refused)
            async with client_over_http(live, auth("b")) as client:
                assert not (await client.call_tool("similarity", arguments)).is_error


class TestReload:
    """Keys change while the server runs."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A file with two keys."""
        file = tmp_path / "keys.toml"
        file.write_text("\n".join((line("a"), line("b"))))
        return file

    def write(self, file: Path, *lines: str) -> None:
        """Rename a file with these lines over the file."""
        other = file.with_name("other")
        other.write_text("\n".join(lines))
        other.replace(file)

    def test_sweep(self, engine: FakeEngine, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A changed file is noticed without a signal; a running request of a gone key finishes."""
        monkeypatch.setattr("matryo.http.reloading.SWEEP_S", 0.01)
        begun, go_on = threading.Event(), threading.Event()
        with (
            live_server(engine, keys_file=file) as live,
            httpx2.Client(base_url=live.url) as client,
        ):

            def wait(_: object) -> None:
                begun.set()
                assert go_on.wait(20)

            engine.before = wait
            statuses: list[int] = []

            def ask(name: str) -> int:
                return client.post(URL, json={"input": "x"}, headers=auth(name)).status_code

            running = threading.Thread(target=lambda: statuses.append(ask("a")))
            running.start()
            assert begun.wait(10)
            engine.before = lambda _: None
            self.write(file, line("b"), line("c"))
            wait_until(lambda: client.get("/v1/models", headers=auth("c")).status_code == 200)
            assert ask("a") == 401
            go_on.set()
            running.join(20)
            assert statuses == [200]
            assert reloads(live, "ok") == 1

    def test_bad_file(
        self, engine: FakeEngine, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bad file, an empty one and none at all are refused, and the old keys go on."""
        monkeypatch.setattr("matryo.http.reloading.SWEEP_S", 0.01)
        with (
            live_server(engine, keys_file=file) as live,
            httpx2.Client(base_url=live.url) as client,
        ):
            for n, change in enumerate(
                (
                    lambda: self.write(file, "a = {"),
                    lambda: self.write(file),
                    file.unlink,
                    file.mkdir,
                ),
                1,
            ):
                change()
                wait_until(lambda n=n: reloads(live, "refused") == n)
                assert client.get("/v1/models", headers=auth("a")).status_code == 200
                assert client.get("/v1/models").status_code == 401


def reloads(live: Live, outcome: str) -> float:
    """How often keys were read again."""
    registry = live.application.state.context.metrics.registry
    labels = {"what": "keys", "outcome": outcome}
    return registry.get_sample_value("matryo_reloads_total", labels) or 0.0
