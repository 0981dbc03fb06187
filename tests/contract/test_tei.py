"""TEI's routes answer as text-embeddings-inference does, over the same service."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest

from matryo.engine import TokenIds
from matryo.http.tei.document import EXAMPLES
from tests.contract.conftest import client_of, entered_application, live_server, wait_until
from tests.fakes import MINILM, FakeEngine, as_float32

JSON = {"content-type": "application/json"}


def assert_tei_error(response: httpx2.Response, status: int, error_type: str) -> str:
    """Check that a response is TEI's error object; returns its message."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    answer = response.json()
    assert set(answer) == {"error", "error_type"}
    assert answer["error_type"] == error_type
    assert answer["error"]
    return answer["error"]


async def embedded(client: httpx2.AsyncClient, **body: Any) -> Any:
    """The vectors of a request to `/embed`."""
    answer = await client.post("/embed", json=body)
    assert answer.status_code == 200, answer.text
    return as_float32(answer.json())


# --- /embed


async def test_one_text_and_several(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """The answer is a list of vectors in the order of the texts, also for one text."""
    expected = [engine.expected(f"search_document: {text}") for text in ("sky", "grass")]
    assert np.array_equal(await embedded(client, inputs="sky"), expected[:1])
    assert np.array_equal(await embedded(client, inputs=["sky", "grass"]), expected)


@pytest.mark.parametrize("n_texts", [1, 7, 300])
async def test_has_the_bits_of_the_openai_route(client: httpx2.AsyncClient, n_texts: int) -> None:
    """The vectors and the fingerprint are those of `/v1/embeddings`, however many texts there are."""
    texts = [f"text {n}" for n in range(n_texts)]
    fields = {"dimensions": 64}
    other = await client.post(
        "/v1/embeddings", json={"input": texts, "input_type": "query"} | fields
    )
    mine = await client.post("/embed", json={"inputs": texts, "prompt_name": "query"} | fields)
    vectors = [row["embedding"] for row in other.json()["data"]]
    assert mine.json() == vectors
    assert mine.headers["x-matryo-fingerprint"] == other.headers["x-matryo-fingerprint"]
    assert mine.headers["x-compute-tokens"] == str(other.json()["usage"]["prompt_tokens"])
    assert mine.headers["x-compute-characters"] == str(sum(map(len, texts)))


async def test_the_hub_s_clients_post_to_the_root(client: httpx2.AsyncClient) -> None:
    """`POST /` is `/embed`, as in TEI, and `GET /` is the page."""
    answer = await client.post("/", json={"inputs": "sky"})
    assert answer.json() == (await client.post("/embed", json={"inputs": "sky"})).json()
    assert_tei_error(await client.post("/", json={"inputs": ""}), 400, "Empty")
    assert (await client.get("/")).text.startswith("<!doctype html>")


async def test_no_double_prefix(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """A text that brings a prefix, as Milvus sends it, gets no other."""
    found = await embedded(client, inputs="search_query: sky", prompt_name="document")
    assert np.array_equal(found, [engine.expected("search_query: sky")])


async def test_token_ids_are_the_model_s_own(
    client: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    """Ids are those of the served model, whatever the operator chose for OpenAI's route."""
    ids = [int(n) for n in engine.tokenize(["blue sky"])[0].ids[1:-1]]
    expected = await embedded(client, inputs="blue sky", prompt_name="query")
    for inputs in (ids, [ids]):
        found = await embedded(client, inputs=inputs, prompt_name="query")
        assert np.array_equal(found, expected)


async def test_unnormalized(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """`normalize: false` gives the vector before the last step, and another fingerprint."""
    ids = engine.tokenize(["search_document: sky"])[0].ids
    raw = await client.post("/embed", json={"inputs": "sky", "normalize": False, "dimensions": 64})
    unit = await client.post("/embed", json={"inputs": "sky", "dimensions": 64})
    assert np.array_equal(as_float32(raw.json())[0], engine.raw(ids, 64))
    assert np.array_equal(as_float32(unit.json())[0], engine.vector(ids, 64))
    assert raw.headers["x-matryo-fingerprint"] == (
        unit.headers["x-matryo-fingerprint"] + "+unnormalized"
    )


async def test_long_texts_are_cut(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """A long text is cut at its end by default, at its beginning for `Left`, or is refused."""
    limit = engine.manifest.tokenizer.max_tokens
    words = [f"w{n}" for n in range(limit + 50)]
    text, first = " ".join(words), "search_document: " + " ".join(words[: limit - 3])
    last = engine.tokenize([" ".join(words[-limit + 2 :])])[0].ids
    answer = await client.post("/embed", json={"inputs": text})
    assert answer.headers["x-matryo-truncated"] == "1"
    assert np.array_equal(as_float32(answer.json()), [engine.expected(first)])
    for truncate in (None, True):
        for left in ("Left", "left"):
            found = await embedded(
                client, inputs=text, truncate=truncate, truncation_direction=left
            )
            assert np.array_equal(found, [engine.vector(last, 768)])
    refused = await client.post("/embed", json={"inputs": text, "truncate": False})
    assert "'inputs'" in assert_tei_error(refused, 422, "Validation")


# --- errors


@pytest.mark.parametrize(
    ("body", "status", "error_type", "word"),
    [
        ({"inputs": []}, 400, "Empty", "`inputs` cannot be empty"),
        ({"inputs": ""}, 400, "Empty", "`inputs` cannot be empty"),
        ({"inputs": ["a", ""]}, 400, "Empty", "inputs[1]"),
        ({"inputs": [[]]}, 400, "Empty", "inputs[0]"),
        ({"inputs": ["a"] * 2049}, 422, "Validation", "2048"),
        ({"inputs": 1}, 422, "Validation", "'inputs'"),
        ({"inputs": {"a": 1}}, 422, "Validation", "'inputs'"),
        ({"inputs": ["a", 1]}, 422, "Validation", "'inputs'"),
        ({"inputs": ["a", [1]]}, 422, "Validation", "'inputs'"),
        ({"inputs": [[-1]]}, 422, "Validation", "'inputs[0][0]'"),
        ({"inputs": None}, 422, "Validation", "'inputs'"),
        ({}, 422, "Validation", "'inputs'"),
        ({"inputs": "a", "prompt_name": "haiku"}, 422, "Validation", "'prompt_name': 'haiku'"),
        ({"inputs": "a", "dimensions": 769}, 422, "Validation", "768"),
        ({"inputs": "a", "dimensions": 0}, 422, "Validation", "dimensions"),
        ({"inputs": "a", "normalize": "no"}, 422, "Validation", "normalize"),
        ({"inputs": "a", "truncate": 1}, 422, "Validation", "truncate"),
        ({"inputs": "a", "truncation_direction": "Up"}, 422, "Validation", "truncation_direction"),
        ({"inputs": "a", "promt_name": "query"}, 422, "Validation", "prompt_name"),
        (["a"], 422, "Validation", "inputs"),
    ],
)
async def test_refusals(
    client: httpx2.AsyncClient, body: Any, status: int, error_type: str, word: str
) -> None:
    """What can never succeed has TEI's status and type, and the message names the field."""
    assert word in assert_tei_error(await client.post("/embed", json=body), status, error_type)


@pytest.mark.parametrize("path", ["/embed", "/tokenize", "/decode", "/"])
async def test_errors_of_bodies(engine: FakeEngine, path: str) -> None:
    """Bodies that are not JSON, too large or of another type have TEI's error on every route."""
    async with client_of(engine, max_body_bytes=1024) as client:
        wrong = await client.post(path, content=b"{", headers=JSON)
        assert_tei_error(wrong, 400, "Validation")
        large = await client.post(path, content=b" " * 2000, headers=JSON)
        assert_tei_error(large, 413, "Validation")
        text = await client.post(path, content=b"{}", headers={"content-type": "text/plain"})
        assert_tei_error(text, 415, "Validation")


@pytest.mark.parametrize("path", ["/embed", "/tokenize", "/decode", "/info"])
async def test_methods_and_keys(engine: FakeEngine, path: str) -> None:
    """Every route asks for the key, as `Bearer` or `api-key`; a wrong method is 405 in TEI's form."""
    async with client_of(engine, api_keys="sk-a") as client:
        assert_tei_error(await client.delete(path), 405, "Validation")
        method = "GET" if path == "/info" else "POST"
        body = {"ids": [3]} if path == "/decode" else {"inputs": "a"}
        refused = await client.request(method, path, json=body)
        assert_tei_error(refused, 401, "Validation")
        assert refused.headers["www-authenticate"]
        for headers in ({"authorization": "Bearer sk-a"}, {"api-key": "sk-a"}):
            answer = await client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 200


async def test_a_failed_run_and_a_full_queue(engine: FakeEngine) -> None:
    """A failed run is 424 with the request's id, and a full queue 429 with a time to wait."""

    def fail(_: list[TokenIds]) -> None:
        raise RuntimeError("broken")

    async with entered_application(engine, queue_tokens=10) as (application, client):
        engine.gate.clear()
        running = asyncio.create_task(client.post("/embed", json={"inputs": "a " * 20}))
        while application.state.context.service._scheduler.n_requests == 0:
            await asyncio.sleep(0.001)
        full = await client.post("/embed", json={"inputs": "b"})
        assert_tei_error(full, 429, "Overloaded")
        assert 1 <= int(full.headers["retry-after"]) <= 60
        engine.before = fail  # type: ignore[assignment] - the texts do not matter
        engine.gate.set()
        broken = await running
        assert broken.headers["x-request-id"] in assert_tei_error(broken, 424, "Backend")


async def test_unknown_fields(engine: FakeEngine) -> None:
    """Unknown fields are ignored with a warning, or refused where the operator chose so."""
    body = {"inputs": "a", "options": {"wait_for_model": True}, "parameters": None}
    async with client_of(engine) as client:
        answer = await client.post("/embed", json=body)
        assert answer.headers["x-matryo-warning"] == "ignored: options"
    async with client_of(engine, unknown_fields="refuse") as client:
        assert "options" in assert_tei_error(
            await client.post("/embed", json=body), 422, "Validation"
        )


def test_a_caller_that_hangs_up(engine: FakeEngine) -> None:
    """The work of a caller that hangs up is dropped and counted as 499."""
    with live_server(engine) as live:
        engine.gate.clear()
        service = live.application.state.context.service
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{live.url}/embed", json={"inputs": "a"}, timeout=0.3)
        wait_until(lambda: service._scheduler.n_requests == 0)
        engine.gate.set()
        labels = {"door": "tei", "route": "/embed", "status": "499", "model": engine.manifest.id}
        registry = live.application.state.context.metrics.registry
        wait_until(lambda: registry.get_sample_value("matryo_requests_total", labels))
        wait_until(lambda: service.budget.held == 0)


# --- /info, /tokenize, /decode, /health


async def test_info(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """The facts and the limits are those of the default model and of this server."""
    answer = (await client.get("/info")).json()
    assert answer["model_id"] == "nomic-ai/nomic-embed-text-v1.5"
    assert answer["served_model_name"] == engine.manifest.id
    assert answer["model_type"] == {"embedding": {"pooling": "mean"}}
    assert answer["model_dtype"] == "float32"
    assert answer["max_input_length"] == engine.manifest.tokenizer.max_tokens
    assert answer["max_client_batch_size"] == 2048
    assert answer["auto_truncate"] is True
    assert {"max_concurrent_requests", "max_batch_tokens", "version", "sha"} <= set(answer)


async def test_tokenize(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """Tokens have id, text, special, and offsets in UTF-8 bytes of the text with its prefix."""
    answer = await client.post("/tokenize", json={"inputs": "é sky", "prompt_name": "query"})
    ids = [int(n) for n in engine.tokenize(["search_query: é sky"])[0].ids]
    (tokens,) = answer.json()
    assert [token["id"] for token in tokens] == ids
    plain = {"special": False}
    assert tokens == [
        {"id": 1, "text": "[CLS]", "special": True, "start": None, "stop": None},
        {"id": ids[1], "text": "search_query:", "start": 0, "stop": 13} | plain,
        {"id": ids[2], "text": "é", "start": 14, "stop": 16} | plain,
        {"id": ids[3], "text": "sky", "start": 17, "stop": 20} | plain,
        {"id": 2, "text": "[SEP]", "special": True, "start": None, "stop": None},
    ]
    bare = await client.post(
        "/tokenize",
        json={
            "inputs": ["a", "search_query: b"],
            "add_special_tokens": False,
            "prompt_name": "none",
        },
    )
    assert [[token["text"] for token in tokens] for tokens in bare.json()] == [
        ["a"],
        ["search_query:", "b"],
    ]


async def test_many_texts_to_tokenize(client: httpx2.AsyncClient) -> None:
    """The tokens of many texts come in the order of the texts."""
    texts = [f"w{n}" for n in range(500)]
    answer = await client.post(
        "/tokenize", json={"inputs": texts, "add_special_tokens": False, "prompt_name": "none"}
    )
    assert [tokens[0]["text"] for tokens in answer.json()] == texts


async def test_limits_of_tokenize(engine: FakeEngine) -> None:
    """Texts that are too long, or have too many tokens together, are refused."""
    async with client_of(engine, max_request_tokens=1000) as client:
        many = await client.post("/tokenize", json={"inputs": ["a " * 300] * 4})
        assert "1000" in assert_tei_error(many, 422, "Validation")
        long = await client.post("/tokenize", json={"inputs": ["b", "a" * 1_100_000]})
        assert "'inputs[1]'" in assert_tei_error(long, 422, "Validation")
        ids = await client.post("/decode", json={"ids": [3] * 1001})
        assert "1000" in assert_tei_error(ids, 422, "Validation")
        assert_tei_error(await client.post("/tokenize", json={"inputs": [3]}), 422, "Validation")


async def test_decode(client: httpx2.AsyncClient) -> None:
    """One array or several become strings, with special tokens or without."""
    for ids, found in (([1, 7, 2], ["7"]), ([[1, 7, 2], [8]], ["7", "8"])):
        assert (await client.post("/decode", json={"ids": ids})).json() == found
    whole = await client.post("/decode", json={"ids": [1, 7, 2], "skip_special_tokens": False})
    assert whole.json() == ["[CLS] 7 [SEP]"]
    for ids, status, kind in (([], 400, "Empty"), ([[]], 400, "Empty"), ("a", 422, "Validation")):
        assert_tei_error(await client.post("/decode", json={"ids": ids}), status, kind)
    unknown = await client.post("/decode", json={"ids": [1 << 40]})
    assert "'ids[0]'" in assert_tei_error(unknown, 422, "Validation")


async def test_health(engine: FakeEngine) -> None:
    """A server that is not ready answers 503 with TEI's error beside its own words."""
    async with entered_application(engine) as (application, client):
        assert (await client.get("/health")).status_code == 200
        application.state.context.service.announce_stop()
        answer = await client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["error_type"] == "Unhealthy"
        assert answer.json()["reason"] in answer.json()["error"]


async def test_the_lease_is_given_back(engine: FakeEngine) -> None:
    """No route keeps memory of the budget, whether it answers or refuses."""
    async with entered_application(engine) as (application, client):
        for path, body in (
            ("/embed", {"inputs": ["a"] * 50}),
            ("/tokenize", {"inputs": ["a"] * 50}),
            ("/decode", {"ids": [[3]] * 50}),
            ("/embed", {"inputs": []}),
        ):
            await client.post(path, json=body)
            assert application.state.context.service.budget.held == 0


# --- the document


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, names in EXAMPLES.items() for name in names]
)
async def test_examples_run(client: httpx2.AsyncClient, path: str, name: str) -> None:
    """Each example fits its schema and succeeds, and the answer fits the document."""
    document = (await client.get("/openapi.json")).json()
    components = {"components": document["components"]}
    call = document["paths"][path]["post"]
    content = call["requestBody"]["content"]["application/json"]
    example = content["examples"][name]["value"]
    jsonschema.validate(example, content["schema"] | components)
    answer = await client.post(path, json=example)
    assert answer.status_code == 200
    described = call["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), described | components)


async def test_the_document_follows_the_model() -> None:
    """Sizes, prompts and keys in the document are those of the default model and the settings."""
    async with client_of(FakeEngine(MINILM), api_keys="k", strict_dimensions=True) as client:
        document = (await client.get("/openapi.json")).json()
    fields = document["components"]["schemas"]["EmbedRequest"]["properties"]
    assert fields["dimensions"]["anyOf"][0]["enum"] == [384]
    for path in ("/embed", "/info", "/tokenize", "/decode"):
        for operation in document["paths"][path].values():
            assert operation["security"]
    assert "422" in document["paths"]["/embed"]["post"]["responses"]
