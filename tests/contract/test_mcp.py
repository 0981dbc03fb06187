"""The tools of `matryo mcp`, asked by the SDK's own client over streamable HTTP and in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from matryo.assembly.service import build_service
from matryo.main import create_mcp_app
from matryo.mcp.server import build_tools_server
from tests.contract.conftest import Live, client_of, live_server, settings
from tests.fakes import MINILM, FakeEngine, as_float32

TEXTS = ["Grass is green.", "The sky is blue.", "Cats purr.", "The sky is blue."]
QUERY = "What colour is the sky?"
MODES = ["legacy", "auto"]

Ask = Callable[[str, dict[str, Any]], Awaitable[CallToolResult]]


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """The tools over HTTP: the fake v1.5 as default, and a fake MiniLM."""
    with live_server([engine, FakeEngine(MINILM)], create=create_mcp_app) as live:
        yield live


@asynccontextmanager
async def client_over_http(
    live: Live, headers: dict[str, str] | None = None, **options: Any
) -> AsyncGenerator[Client, None]:
    """The SDK's client of a live server."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=20))
        transport = streamable_http_client(f"{live.url}/mcp", http_client=http)
        yield await stack.enter_async_context(Client(transport, **options))


@asynccontextmanager
async def tools_of(engine: FakeEngine, **changes: Any) -> AsyncGenerator[Client, None]:
    """The SDK's client of a server in this very process."""
    service = build_service(settings(**changes), [engine])
    async with service, Client(build_tools_server(service, "1")) as client:
        yield client


@pytest.fixture
def call(engine: FakeEngine) -> Ask:
    """Calls a tool in process, once."""

    async def ask(tool: str, arguments: dict[str, Any]) -> CallToolResult:
        async with tools_of(engine) as client:
            return await client.call_tool(tool, arguments)

    return ask


def words(result: CallToolResult) -> str:
    """What an assistant reads of a call that was refused."""
    assert result.is_error
    assert result.structured_content is None
    return text_of(result)


def text_of(result: CallToolResult) -> str:
    """The text of a result."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def http_vectors(engine: FakeEngine, **body: Any) -> Any:
    """The vectors of `/v1/embeddings`: `(n, D)` float32."""
    async with client_of(engine) as http:
        answer = await http.post("/v1/embeddings", json=body)
        return as_float32([item["embedding"] for item in answer.json()["data"]])


class TestRank:
    """`rank` orders texts by their cosine with a query."""

    @pytest.mark.parametrize("mode", MODES)
    async def test_same_as_http(self, live: Live, engine: FakeEngine, mode: Any) -> None:
        """Scores are the cosines of the HTTP route's vectors, best first, equal ones in order."""
        query = await http_vectors(FakeEngine(), input=[QUERY], input_type="query")
        texts = await http_vectors(FakeEngine(), input=TEXTS, input_type="document")
        cosines = texts.astype(np.float64) @ query[0].astype(np.float64)
        async with client_over_http(live, mode=mode) as client:
            result = await client.call_tool("rank", {"query": QUERY, "texts": TEXTS})
        found = result.structured_content
        assert [one["index"] for one in found["results"]] == [
            int(n) for n in np.argsort(-cosines, kind="stable")
        ]
        for one in found["results"]:
            assert one["score"] == pytest.approx(cosines[one["index"]], abs=1e-6)
            assert one["text"] == TEXTS[one["index"]]
        assert found["model"] == engine.manifest.id
        assert json.loads(text_of(result)) == found
        assert "search_query: " + QUERY in engine.seen
        assert "search_document: " + TEXTS[0] in engine.seen

    async def test_top_and_heads(self, call: Ask) -> None:
        """`top` bounds the results, and a long text is shown by its beginning, in one line."""
        texts = ["a\n b " * 1000, "x " * 30, " " * 400 + "y"]
        result = await call("rank", {"query": "a", "texts": texts, "top": 2})
        assert len(result.structured_content["results"]) == 2
        full = await call("rank", {"query": "a", "texts": texts})
        heads = {one["index"]: one["text"] for one in full.structured_content["results"]}
        assert heads == {0: ("a b " * 20) + "…", 1: "x " * 29 + "x", 2: "…"}

    async def test_other_model(self, live: Live) -> None:
        """`model` chooses the model; an unknown one is refused in the words of the HTTP route."""
        async with client_over_http(live) as client:
            arguments = {"query": "a", "texts": ["b"]}
            result = await client.call_tool("rank", arguments | {"model": MINILM.id})
            assert result.structured_content["model"] == MINILM.id
            refused = await client.call_tool("rank", arguments | {"model": "nope"})
        async with client_of([FakeEngine(), FakeEngine(MINILM)]) as http:
            answer = await http.post("/v1/embeddings", json={"input": "a", "model": "nope"})
        assert words(refused) == answer.json()["error"]["message"]

    async def test_model_without_the_prompts(self) -> None:
        """A model whose prompts have other names gets the server's default for both."""
        engine = FakeEngine(FakeEngine().manifest.model_copy(update={"prompts": {"sts": "sts: "}}))
        async with tools_of(engine, default_input_type="sts") as client:
            result = await client.call_tool("rank", {"query": "a", "texts": ["b"]})
        assert not result.is_error
        assert engine.seen[-2:] == ["sts: a", "sts: b"]

    async def test_cut_texts(self, call: Ask) -> None:
        """Texts over the model's limit are cut, and the warnings say which."""
        long = "a " * 9000
        result = await call("rank", {"query": long, "texts": ["b", long, "�"]})
        assert result.structured_content["warnings"] == [
            "Cut to the model's limit of tokens: query.",
            "Cut to the model's limit of tokens: texts at index 1.",
            "With something that nomic-embed-text-v1.5 cannot read: texts at index 2.",
        ]


class TestSimilarity:
    """`similarity` compares two texts."""

    async def test_symmetric(self, call: Ask, engine: FakeEngine) -> None:
        """The two texts have one input type, and may be swapped."""
        vectors = await http_vectors(FakeEngine(), input=["a", "b"], input_type="clustering")
        there = (await call("similarity", {"a": "a", "b": "b"})).structured_content
        back = (await call("similarity", {"a": "b", "b": "a"})).structured_content
        assert there == back
        expected = float(vectors[0].astype(np.float64) @ vectors[1].astype(np.float64))
        assert there["similarity"] == pytest.approx(expected, abs=1e-6)
        assert there["input_type"] == "clustering"
        same = (await call("similarity", {"a": "a", "b": "a"})).structured_content
        assert same["similarity"] == 1

    async def test_model_without_the_prompt(self) -> None:
        """A model that has prompts, but none for comparing, gets both texts without a prompt."""
        prompts = {"query": "query: ", "document": "passage: "}
        engine = FakeEngine(FakeEngine().manifest.model_copy(update={"prompts": prompts}))
        async with tools_of(engine) as client:
            result = await client.call_tool("similarity", {"a": "a", "b": "b"})
        assert result.structured_content["input_type"] == "none"
        assert engine.seen[-2:] == ["a", "b"]

    async def test_warnings_name_the_argument(self, call: Ask) -> None:
        """A text that was cut is named as the caller named it."""
        result = await call("similarity", {"a": "b", "b": "a " * 9000})
        assert result.structured_content["warnings"] == ["Cut to the model's limit of tokens: b."]


class TestEmbed:
    """`embed` gives a few vectors, and never many."""

    async def test_same_bits_as_http(self, call: Ask) -> None:
        """The numbers are those of the HTTP route, bit for bit, in few digits."""
        expected = await http_vectors(
            FakeEngine(), input=TEXTS[:3], input_type="query", dimensions=256
        )
        arguments = {"texts": TEXTS[:3], "input_type": "query", "dimensions": 256}
        result = await call("embed", arguments)
        found = result.structured_content
        assert np.array_equal(as_float32(found["embeddings"]), expected)
        assert (found["dimensions"], found["input_type"]) == (256, "query")
        assert found["fingerprint"].endswith("/query/256/float")
        assert max(len(repr(x)) for row in found["embeddings"] for x in row) <= 16
        assert json.loads(text_of(result)) == found

    @pytest.mark.parametrize(
        ("texts", "dimensions", "fits"),
        [(8, 256, True), (9, 64, False), (2, 768, True), (3, 768, False), (3, None, False)],
    )
    async def test_bound(
        self, call: Ask, engine: FakeEngine, texts: int, dimensions: int | None, fits: bool
    ) -> None:
        """At most 8 vectors and 2048 numbers; the refusal names both and the route for more."""
        arguments = {"texts": ["a"] * texts, "dimensions": dimensions}
        result = await call("embed", arguments)
        assert result.is_error is not fits
        if not fits:
            for part in ("8 vectors", "2048 numbers", "/v1/embeddings", f"{texts} vectors of"):
                assert part in words(result)
        assert ("search_document: a" in engine.seen) is fits

    async def test_wrong_choices(self, call: Ask) -> None:
        """A size and an input type that the model lacks are refused as the HTTP route does."""
        async with client_of(FakeEngine()) as http:
            for wish in ({"dimensions": 1000}, {"input_type": "nope"}):
                answer = await http.post("/v1/embeddings", json={"input": "a"} | wish)
                result = await call("embed", {"texts": ["a"]} | wish)
                assert words(result) == answer.json()["error"]["message"]


class TestHostileArguments:
    """Arguments of any kind give an error that an assistant can act on, and nothing else."""

    @pytest.mark.parametrize(
        ("tool", "arguments", "expected"),
        [
            ("rank", {"query": "a", "texts": []}, "'texts'"),
            ("rank", {"query": "a", "texts": "b"}, "'texts'"),
            ("rank", {"query": "a", "texts": ["b", 3]}, "'texts[1]'"),
            ("rank", {"query": "a", "texts": ["b", ""]}, "'texts[1]'"),
            ("rank", {"query": "a", "texts": ["b", None]}, "'texts[1]'"),
            ("rank", {"query": "a", "texts": ["b", ["c"]]}, "'texts[1]'"),
            ("rank", {"query": "a", "texts": {"b": "c"}}, "'texts'"),
            ("rank", {"query": "a", "texts": ["b"] * 10_000}, "maximum length 2048"),
            ("rank", {"query": "a", "texts": ["b " * 1000] * 400}, "max 300000 tokens"),
            ("rank", {"query": "", "texts": ["b"]}, "'query'"),
            ("rank", {"query": "a", "texts": ["b"], "top": 0}, "'top'"),
            ("rank", {"query": "a", "texts": ["b"], "top": 101}, "100"),
            ("rank", {"query": "a", "texts": ["b"], "top": 1.5}, "'top'"),
            ("rank", {"query": "a", "texts": ["b"], "top": float("nan")}, "'top'"),
            ("rank", {"query": "a", "texts": ["b"], "model": 3}, "'model'"),
            ("rank", {"query": "a", "texts": ["b"], "top_k": 3}, "'top_k'"),
            ("rank", {"query": "a", "texts": ["b"], "\x1b[2J" * 100: 3}, r"'\x1b[2J"),
            ("rank", {"texts": ["b"]}, "'query'"),
            ("rank", {}, "'query'"),
            ("similarity", {"a": "b"}, "'b'"),
            ("similarity", {"a": "b", "b": float("inf")}, "'b'"),
            ("embed", {"texts": ["a"], "dimensions": float("nan")}, "'dimensions'"),
            ("embed", {"texts": ["a"], "dimensions": float("inf")}, "'dimensions'"),
            ("embed", {"texts": ["a"], "dimensions": -1}, "'dimensions'"),
            ("embed", {"texts": ["a"], "dimensions": 10**30}, "'dimensions'"),
            ("embed", {"texts": ["a"], "dimensions": "many"}, "'dimensions'"),
        ],
    )
    @pytest.mark.parametrize("mode", MODES)
    async def test_refused(
        self, live: Live, mode: Any, tool: str, arguments: dict[str, Any], expected: str
    ) -> None:
        """The words name the argument or the limit, and the server goes on."""
        # Sent as bytes of our own: JSON of the SDK's client has no NaN.
        async with client_over_http(live, mode=mode) as client:
            if "nan" in repr(arguments) or "inf" in repr(arguments):
                text = words(await raw_call(live, tool, arguments))
            else:
                text = words(await client.call_tool(tool, arguments))
            assert expected in text
            assert len(text) < 400
            assert (await client.call_tool("similarity", {"a": "b", "b": "c"})).is_error is False

    async def test_numbers_as_assistants_write_them(self, call: Ask) -> None:
        """A whole number may come with decimals of zero, or as a string."""
        for top in (1.0, "1"):
            result = await call("rank", {"query": "a", "texts": TEXTS, "top": top})
            assert len(result.structured_content["results"]) == 1

    async def test_huge_text(self, live: Live) -> None:
        """A text of megabytes is cut as any other; a body over the limit is refused by size."""
        async with client_over_http(live) as client:
            result = await client.call_tool("similarity", {"a": "b", "b": "a" * (4 << 20)})
            assert result.structured_content["warnings"]
        body = b'"' + b"a" * (17 << 20) + b'"'
        answer = await post(live, body)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"

    async def test_unknown_tool(self, engine: FakeEngine) -> None:
        """A tool that does not exist is an error of the protocol, which names those that do."""
        async with tools_of(engine) as client:
            with pytest.raises(MCPError, match="rank, similarity, embed"):
                await client.call_tool("nope", {})

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"null", b"[" * 100_000, b"\xff"])
    async def test_no_message(self, live: Live, body: bytes) -> None:
        """A body that is no message is refused with 400."""
        for version in (None, "2026-07-28"):
            assert (await post(live, body, version)).status_code == 400

    @pytest.mark.parametrize("version", [None, "2025-06-18", "2026-07-28"])
    async def test_log(
        self, live: Live, version: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No log line quotes a text, whatever is wrong with the message around the text."""
        caplog.set_level("INFO")
        info = {"name": "a", "version": "1"}
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
        call = {"name": "similarity", "arguments": {"a": "hush", "b": "hush"}}
        for message in (
            {"hush": 1},
            {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call | {"name": 3}},
            {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": ["hush"]},
            {"jsonrpc": "2.0", "id": {"hush": 1}, "method": "tools/call", "params": call},
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello | {"hush": "hush"}},
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": "hush"},
            {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"hush": "hush"}},
        ):
            await post(live, json.dumps(message).encode(), version)
        await raw_call(live, "similarity", {"a": "hush", "b": ["hush"]})
        await raw_call(live, "similarity", {"a": "hush", "b": "hush"})
        assert "tools/call" in caplog.text
        assert "hush" not in caplog.text


async def post(live: Live, body: bytes, version: str | None = None, **more: str) -> httpx2.Response:
    """The answer to a body that is posted as a client of the SDK posts its messages."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
    } | more
    if version:
        headers["mcp-protocol-version"] = version
    async with httpx2.AsyncClient(timeout=20) as http:
        return await http.post(f"{live.url}/mcp", content=body, headers=headers)


async def raw_call(live: Live, tool: str, arguments: dict[str, Any]) -> CallToolResult:
    """The result of a call whose arguments may hold numbers that are not finite."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"mcp-method": "tools/call", "mcp-name": tool}
    answer = await post(live, json.dumps(message).encode(), "2026-07-28", **headers)
    return CallToolResult.model_validate(answer.json()["result"], by_name=False)


class TestFaults:
    """A server that is full, or broken, says so in a result."""

    async def test_full(self, engine: FakeEngine) -> None:
        """A refusal of the queue is that of the HTTP route: when to try again."""
        async with tools_of(engine, max_waiting_requests=1) as client:
            engine.gate.clear()
            arguments = {"a": "b", "b": "c"}
            first = asyncio.create_task(client.call_tool("similarity", arguments))
            await until(lambda: "clustering: b" in engine.seen)
            refused = await client.call_tool("similarity", arguments)
            assert "Please try again in" in words(refused)
            engine.gate.set()
            assert not (await first).is_error

    async def test_broken(self, engine: FakeEngine) -> None:
        """The cause of a fault is not told; an id for the operator is."""

        def fail(_: object) -> None:
            raise ValueError("a secret path")

        async with tools_of(engine) as client:
            engine.before = fail
            text = words(await client.call_tool("similarity", {"a": "b", "b": "c"}))
        assert "request id" in text
        assert "secret" not in text

    async def test_bug(
        self, call: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bug of ours is logged with its traceback, and is no crash of the protocol."""
        monkeypatch.setattr("matryo.mcp.tools._rounded", lambda _: 1 / 0)
        assert "request id" in words(await call("similarity", {"a": "b", "b": "c"}))
        assert "ZeroDivisionError" in caplog.text


class TestCancelling:
    """A cancelled call frees its place."""

    @pytest.mark.parametrize("mode", MODES)
    async def test_cancelled(self, engine: FakeEngine, mode: Any) -> None:
        """The one place of the server is free again once its holder's call was cancelled."""
        with live_server(engine, create=create_mcp_app, max_waiting_requests=1) as live:
            engine.gate.clear()
            async with client_over_http(live, mode=mode) as client:
                call = asyncio.create_task(client.call_tool("similarity", {"a": "b", "b": "c"}))
                await until(lambda: "clustering: b" in engine.seen)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                engine.gate.set()
                await until(lambda: n_waiting(live) == 0)
                engine.gate.clear()
                again = asyncio.create_task(client.call_tool("similarity", {"a": "d", "b": "e"}))
                await until(lambda: "clustering: d" in engine.seen)
                engine.gate.set()
                assert not (await again).is_error


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` is true; fail after a while."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def n_waiting(live: Live) -> float:
    """Requests that the scheduler holds."""
    return live.application.state.context.metrics.n_in_progress


class TestDoor:
    """Keys, names, and the routes beside `/mcp`."""

    @pytest.mark.parametrize("headers", [{"authorization": "Bearer k"}, {"api-key": "k"}])
    async def test_right_key(self, engine: FakeEngine, headers: dict[str, str]) -> None:
        """A key is shown as at the other doors."""
        with live_server(engine, create=create_mcp_app, api_keys=("k",)) as live:
            async with client_over_http(live, headers) as client:
                assert len((await client.list_tools()).tools) == 3

    @pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x"}])
    @pytest.mark.parametrize("version", [None, "2026-07-28"])
    async def test_no_key(
        self, engine: FakeEngine, headers: dict[str, str], version: str | None
    ) -> None:
        """Without a right key nothing is read: 401 with OpenAI's error object."""
        with live_server(engine, create=create_mcp_app, api_keys=("k",)) as live:
            answer = await post(live, b"{", version, **headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["message"]
            async with httpx2.AsyncClient() as http:
                assert (await http.delete(f"{live.url}/mcp")).status_code == 401
                assert (await http.get(f"{live.url}/readyz")).status_code == 200

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"host": "evil.example"}, 421),
            ({"host": "127.0.0.1.evil.example:80"}, 421),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
        ],
    )
    @pytest.mark.parametrize("version", [None, "2026-07-28"])
    async def test_rebinding(
        self, live: Live, headers: dict[str, str], status: int, version: str | None
    ) -> None:
        """A page of another site cannot call, whatever name leads it here."""
        assert (await post(live, b"{}", version, **headers)).status_code == status

    async def test_own_names(self, engine: FakeEngine) -> None:
        """Loopback names, allowed origins, and, with a key, any name pass."""
        origin = "https://app.example"
        with live_server(engine, create=create_mcp_app, cors_origins=(origin,)) as live:
            for headers in ({"host": "localhost"}, {"host": "[::1]:80"}, {"origin": origin}):
                assert (await post(live, b"{}", **headers)).status_code == 400
        with live_server(engine, create=create_mcp_app, api_keys=("k",)) as live:
            answer = await post(live, b"{}", host="mcp.example", authorization="Bearer k")
            assert answer.status_code == 400

    async def test_other_requests(self, live: Live) -> None:
        """GET opens no stream, other bodies and routes are refused in our words."""
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"{live.url}/mcp")).status_code == 405
            assert (await http.post(f"{live.url}/v1/embeddings", json={})).status_code == 404
            assert (await http.get(f"{live.url}/openapi.json")).status_code == 404
            assert "matryo_ready" in (await http.get(f"{live.url}/metrics")).text
        answer = await post(live, b"{}", **{"content-type": "text/plain"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            415,
            "unsupported_content_type",
        )

    async def test_drains(self, engine: FakeEngine) -> None:
        """A call that runs when the server stops gets its answer."""
        with live_server(engine, create=create_mcp_app) as live:
            engine.gate.clear()
            running = asyncio.create_task(raw_call(live, "similarity", {"a": "b", "b": "c"}))
            await until(lambda: "clustering: b" in engine.seen)
            live.server.stop()
            service = live.application.state.context.service
            await until(lambda: service.why_not_ready() is not None)
            engine.gate.set()
            assert not (await running).is_error


class TestDescriptions:
    """What an assistant reads before it calls."""

    async def test_tools(self, engine: FakeEngine) -> None:
        """Each tool says what it does, what it takes and gives, and that it changes nothing."""
        async with tools_of(engine) as client:
            tools, instructions = (await client.list_tools()).tools, client.instructions
        assert [tool.name for tool in tools] == ["rank", "similarity", "embed"]
        for tool in tools:
            assert tool.description
            assert tool.annotations
            assert tool.annotations.read_only_hint
            assert tool.output_schema
            for field in tool.input_schema["properties"].values():
                assert field["description"]
        assert instructions
        assert "nomic-embed-text-v1.5" in instructions

    async def test_locked(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the operator fixed the input type, every tool keeps to that type."""
        from matryo.core import fixed

        monkeypatch.setattr(
            "matryo.assembly.service.fixed",
            lambda: fixed.Fixed({}, frozenset({"default_input_type"}), "file"),
        )
        async with tools_of(engine) as client:
            assert not (await client.call_tool("rank", {"query": "a", "texts": ["b"]})).is_error
            assert not (await client.call_tool("similarity", {"a": "a", "b": "b"})).is_error
        assert all(text.startswith("search_document: ") for text in engine.seen[-4:])
