"""`x-matryo-expect-fingerprint` at every door: other vectors are refused, and nothing is computed."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import grpc
import httpx2
import openai
import pytest

from matryo.service.expectation import EXPECT
from tests.contract.conftest import Live, client_of, live_server, openai_of
from tests.contract.test_grpc import EMBED, INFER, PREDICT, STREAM, tensor
from tests.contract.test_keys import auth, line
from tests.contract.wire import Client, answers, field, fields_of, message, strings
from tests.fakes import MINILM, NOMIC, FakeEngine

OPENAI = (
    "/v1/embeddings",
    "/embeddings",
    "/openai/v1/embeddings",
    f"/openai/deployments/{NOMIC.id}/embeddings",
)
BODIES: dict[str, dict[str, Any]] = {path: {"input": "a"} for path in OPENAI} | {
    "/embed": {"inputs": "a"},
    "/": {"inputs": "a"},
    "/predict": {"inputs": ["a"]},
}
WHOLE = f"{NOMIC.id}/fp32/fake/document/768/float"
BAD = [
    ("a-model", "another model"),
    (f"{NOMIC.id}/int8", "another precision"),
    (f"{NOMIC.id}/fp32/other+native", "another build"),
    (f"{NOMIC.id}/fp32/fake/query", "another input type"),
    (f"{NOMIC.id}/fp32/fake/document/64", "another number of dimensions"),
    (f"{NOMIC.id}/fp32/fake/document/768/int8", "another number type"),
    (f"{NOMIC.id}/fp3", "another precision"),
    (f"{WHOLE}, {WHOLE}", "another number type"),
]


def words(answer: httpx2.Response) -> str:
    """The message of an error, in whatever form the door gives it."""
    if answer.headers["content-type"].startswith("text/plain"):
        return answer.text
    error = answer.json()["error"]
    return error if isinstance(error, str) else error["message"]


class TestHttp:
    """All routes that give vectors."""

    @pytest.mark.parametrize("path", BODIES)
    async def test_doors(self, client: httpx2.AsyncClient, engine: FakeEngine, path: str) -> None:
        """What is expected is answered; anything else is 412 with the door's own error."""
        for n_parts in range(1, 7):
            part = "/".join(WHOLE.split("/")[:n_parts])
            for expected in (part, f"{part}/", f"  {part} "):
                headers = {EXPECT: expected}
                answer = await client.post(path, json=BODIES[path], headers=headers)
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-matryo-fingerprint"] == WHOLE
        seen = len(engine.seen)
        for expected, what in BAD:
            headers = {EXPECT: expected}
            answer = await client.post(path, json=BODIES[path], headers=headers)
            assert answer.status_code == 412
            assert what in words(answer)
            assert f"'{WHOLE}'" in words(answer)
        assert len(engine.seen) == seen, "a text was tokenised"

    async def test_openais_error(self, client: httpx2.AsyncClient) -> None:
        """Type and code are OpenAI's way, and TEI's error has TEI's."""
        headers = {EXPECT: "x"}
        answer = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "fingerprint_mismatch"
        answer = await client.post("/embed", json={"inputs": "a"}, headers=headers)
        assert answer.json()["error_type"] == "Validation"

    async def test_what_the_request_chooses(self, client: httpx2.AsyncClient) -> None:
        """The fingerprint is that of this request: its model, type, size and numbers."""
        body = {"input": "a", "input_type": "query", "dimensions": 64, "embedding_type": "int8"}
        headers = {EXPECT: f"{NOMIC.id}/fp32/fake/query/64/int8"}
        assert (await client.post("/v1/embeddings", json=body, headers=headers)).status_code == 200
        del body["dimensions"]
        answer = await client.post("/v1/embeddings", json=body, headers=headers)
        assert answer.status_code == 412
        assert "another number of dimensions" in words(answer)
        headers = {EXPECT: MINILM.id}
        body = {"input": "a", "model": MINILM.id}
        assert (await client.post("/v1/embeddings", json=body, headers=headers)).status_code == 200

    @pytest.mark.parametrize("path", BODIES)
    @pytest.mark.parametrize("expected", ["", " ", "/"])
    async def test_empty(self, client: httpx2.AsyncClient, path: str, expected: str) -> None:
        """A variable that was never set does not switch the guard off in silence."""
        headers = {EXPECT: expected}
        answer = await client.post(path, json=BODIES[path], headers=headers)
        assert answer.status_code == (400 if path in OPENAI else 422)
        assert "is empty" in words(answer)

    async def test_several_headers(self, client: httpx2.AsyncClient) -> None:
        """Several headers are refused, whatever they say."""
        headers = [(EXPECT, WHOLE), (EXPECT, WHOLE)]
        answer = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
        assert answer.status_code == 400
        assert "came 2 times" in words(answer)

    async def test_other_faults_first(self, client: httpx2.AsyncClient) -> None:
        """What could never be answered is told before."""
        for body, status in (
            ({"input": "a", "model": "unknown"}, 404),
            ({"input": []}, 400),
            ({"input": "a", "dimensions": 9999}, 400),
            ({"input": "a", "dimensions": 9, "embedding_type": "binary"}, 400),
        ):
            answer = await client.post("/v1/embeddings", json=body, headers={EXPECT: "x"})
            assert answer.status_code == status

    async def test_routes_without_vectors(self, client: httpx2.AsyncClient) -> None:
        """A client that sends the header with everything may ask for anything else."""
        for answer in (
            await client.get("/v1/models", headers={EXPECT: "x"}),
            await client.get(f"/v1/models/{NOMIC.id}", headers={EXPECT: "x"}),
            await client.post("/tokenize", json={"inputs": "a"}, headers={EXPECT: "x"}),
        ):
            assert answer.status_code == 200

    async def test_costs_nothing(self, engine: FakeEngine) -> None:
        """No token is charged or counted, and a full queue has no part."""
        keys = line("a", ", tokens_per_minute = 100")
        async with client_of(engine, keys=keys) as client:
            headers = auth("a") | {EXPECT: "x"}
            answer = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
            assert answer.status_code == 412
            assert answer.headers["x-ratelimit-remaining-tokens"] == "100"
            metrics = (await client.get("/metrics")).text
        assert "matryo_tokens_total{" not in metrics
        assert 'status="412"' in metrics

    async def test_a_forbidden_model(self, engine: FakeEngine) -> None:
        """A key learns nothing of a model that it may not use."""
        keys = line("a", f', models = ["{MINILM.id}"]')
        async with client_of([engine, FakeEngine(MINILM)], keys=keys) as client:
            headers = auth("a") | {EXPECT: "x"}
            body = {"input": "a", "model": NOMIC.id}
            answer = await client.post("/v1/embeddings", json=body, headers=headers)
        assert answer.status_code == 403

    async def test_the_official_client(self, client: httpx2.AsyncClient) -> None:
        """OpenAI's client raises the status, and does not try again."""
        sent: list[httpx2.Request] = []

        async def note(request: httpx2.Request) -> None:
            sent.append(request)

        client.event_hooks = {"request": [note]}
        sdk = openai_of(client, max_retries=3, default_headers={EXPECT: f"{NOMIC.id}/int8"})
        with pytest.raises(openai.APIStatusError) as error:
            await sdk.embeddings.create(model=NOMIC.id, input="a")
        assert error.value.status_code == 412
        assert error.value.code == "fingerprint_mismatch"
        assert len(sent) == 1
        right = {EXPECT: f"{NOMIC.id}/fp32"}
        found = await sdk.embeddings.create(model=NOMIC.id, input="a", extra_headers=right)
        assert len(found.data[0].embedding) == 768

    async def test_a_browser(self, engine: FakeEngine) -> None:
        """A page of an allowed origin may send the header."""
        async with client_of(engine, cors_origins="https://a.example") as client:
            preflight = await client.options(
                "/v1/embeddings",
                headers={
                    "origin": "https://a.example",
                    "access-control-request-method": "POST",
                    "access-control-request-headers": f"authorization,content-type,{EXPECT}",
                },
            )
            assert preflight.status_code == 200
            assert EXPECT in preflight.headers["access-control-allow-headers"]
            headers = {"origin": "https://a.example", EXPECT: "x"}
            answer = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
            assert answer.status_code == 412
            assert answer.headers["access-control-allow-origin"] == "https://a.example"

    def test_odd_values(self, engine: FakeEngine) -> None:
        """Any bytes are an answer that is short and plain, and the connection goes on."""
        with live_server(engine) as live:
            wire = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
            for value in (b"\xff\xfe\x80", "ü/ß".encode(), b"x" * 7000, b"/" * 50, b"\"\\'<b>"):
                wire.putrequest("POST", "/v1/embeddings")
                wire.putheader("content-length", "14")
                wire.putheader(EXPECT, value)
                wire.endheaders(b'{"input": "a"}')
                answer = wire.getresponse()
                content = answer.read()
                assert answer.status == 412
                assert b"fingerprint_mismatch" in content
                assert len(content) < 1400
            wire.close()


class TestGrpc:
    """Every method that gives vectors, by the metadata of the same name."""

    @pytest.fixture
    def live(self, engine: FakeEngine) -> Iterator[Live]:
        """A server of two models, with a port for gRPC."""
        with live_server([engine, FakeEngine(MINILM)], grpc_port=0) as server:
            yield server

    @pytest.mark.parametrize(
        ("path", "raw"),
        [
            (EMBED, field(1, "a")),
            (PREDICT, field(1, "a")),
            (INFER, message((5, tensor("text", 1)), (7, strings("a")))),
        ],
    )
    def test_methods(self, live: Live, engine: FakeEngine, path: str, raw: bytes) -> None:
        """What is expected is answered, and anything else is FAILED_PRECONDITION."""
        for expected in (NOMIC.id, f"{NOMIC.id}/fp32/", WHOLE):
            with Client(live, **{EXPECT: expected}) as client:
                assert client.ask(path, raw)
        seen = len(engine.seen)
        for expected, what in BAD:
            with Client(live, **{EXPECT: expected}) as client:
                error = client.refused(path, raw)
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert what in error.details()
            assert WHOLE in error.details()
        assert len(engine.seen) == seen
        for expected in ("", "/"):
            with Client(live, **{EXPECT: expected}) as client:
                error = client.refused(path, raw)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "is empty" in error.details()
        with Client(live, **{EXPECT: "x" * 4000}) as client:
            assert len(client.refused(path, raw).details()) <= 1024

    def test_twice(self, live: Live) -> None:
        """Two of the same key are refused."""
        with Client(live) as client:
            client.metadata = ((EXPECT, WHOLE), (EXPECT, WHOLE))
            error = client.refused(EMBED, field(1, "a"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "came 2 times" in error.details()

    def test_a_stream(self, live: Live, engine: FakeEngine) -> None:
        """Every message is held against the fingerprint; answers before the first other arrive."""
        raws = [field(1, f"text {n}") for n in range(20)]
        with Client(live, **{EXPECT: f"{WHOLE}"}) as client:
            assert len(answers(client.stream(STREAM, raws))) == 20
            other = message((1, "is it?"), (5, "query"))
            found: list[bytes] = []
            with pytest.raises(grpc.RpcError) as error:
                found.extend(client.stream(STREAM, [*raws[:3], other, *raws]))
            assert len(found) == 3
            assert all(fields_of(raw)[1] for raw in found)
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        seen = len(engine.seen)
        with Client(live, **{EXPECT: f"{NOMIC.id}/int8"}) as client:
            with pytest.raises(grpc.RpcError) as error:
                list(client.stream(STREAM, raws))
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert len(engine.seen) == seen

    def test_another_model(self, live: Live) -> None:
        """The fingerprint is that of the model that the metadata name."""
        with Client(live, model=MINILM.id, **{EXPECT: MINILM.id}) as client:
            assert client.ask(EMBED, field(1, "a"))
