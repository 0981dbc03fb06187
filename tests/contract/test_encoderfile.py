"""Encoderfile's REST routes answer as Encoderfile does, over the same service."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest

from matryo.http.encoderfile.document import EXAMPLES
from tests.contract.conftest import client_of
from tests.fakes import MINILM, FakeEngine, as_float32

JSON = {"content-type": "application/json"}


def assert_plain_error(response: httpx2.Response, status: int) -> str:
    """Check that a response is a plain text with a status; returns the text."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text
    assert not response.text.startswith("{")
    return response.text


@pytest.mark.parametrize("n_texts", [1, 7, 300])
async def test_has_the_bits_of_the_openai_route(client: httpx2.AsyncClient, n_texts: int) -> None:
    """The vectors and the fingerprint are those of `/v1/embeddings`, however many texts there are."""
    texts = [f"text {n}" for n in range(n_texts)]
    other = await client.post("/v1/embeddings", json={"input": texts})
    mine = await client.post("/predict", json={"inputs": texts})
    assert mine.json() == {
        "results": [{"embedding": row["embedding"]} for row in other.json()["data"]],
        "model_id": other.json()["model"],
    }
    assert mine.headers["x-matryo-fingerprint"] == other.headers["x-matryo-fingerprint"]


async def test_metadata(client: httpx2.AsyncClient) -> None:
    """Metadata come back as they are; they are absent where they were absent or null."""
    for metadata in ({"a": "b", "é": "\n"}, {}):
        answer = await client.post("/predict", json={"inputs": ["a"], "metadata": metadata})
        assert answer.json()["metadata"] == metadata
    answer = await client.post("/predict", json={"inputs": ["a"], "metadata": None})
    assert "metadata" not in answer.json()


async def test_long_texts_are_cut(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """A text over the model's limit is cut at its end, and the header says how many were."""
    limit = engine.manifest.tokenizer.max_tokens
    words = [f"w{n}" for n in range(limit + 50)]
    first = "search_document: " + " ".join(words[: limit - 3])
    answer = await client.post("/predict", json={"inputs": ["a", " ".join(words)]})
    assert answer.headers["x-matryo-truncated"] == "1"
    assert np.array_equal(
        as_float32(answer.json()["results"][1]["embedding"]), engine.expected(first)
    )


async def test_model(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """`/model` names the default model and its kind; `HEAD` has no body."""
    answer = await client.get("/model")
    assert answer.json() == {
        "model_id": engine.manifest.id,
        "model_type": "sentence_embedding",
        "id2label": None,
    }
    head = await client.head("/model")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"inputs": []}, "`inputs` cannot be empty"),
        ({"inputs": ["a", ""]}, "inputs[1]"),
        ({"inputs": ["a"] * 2049}, "'inputs'"),
        ({"inputs": ["a "] * 100 + ["a " * 4000] * 100}, "tokens per request"),
        ({"inputs": 1}, "'inputs'"),
        ({"inputs": [1, 2]}, "'inputs'"),
        ({"inputs": ["a", None]}, "'inputs'"),
        ({"inputs": None}, "'inputs'"),
        ({}, "'inputs'"),
        ({"inputs": ["a"], "metadata": "b"}, "'metadata'"),
        ({"inputs": ["a"], "metadata": {"b": 1}}, "'metadata'"),
        ({"inputs": ["a"], "metadata": ["b"]}, "'metadata'"),
        ({"input": ["a"]}, "did you mean 'inputs'"),
        ([], "object"),
    ],
)
async def test_refused(client: httpx2.AsyncClient, body: Any, word: str) -> None:
    """What can never succeed is 422 with the reason as plain text, in the names of this route."""
    assert word in assert_plain_error(await client.post("/predict", json=body), 422)


async def test_other_errors(engine: FakeEngine) -> None:
    """Every error of these routes is plain text, with its own status and headers."""
    async with client_of(engine, api_keys=("k",), max_body_bytes=1024) as client:
        refused = await client.post("/predict", json={"inputs": ["a"]})
        assert "API key" in assert_plain_error(refused, 401)
        assert refused.headers["www-authenticate"]
        assert_plain_error(await client.get("/model"), 401)
        client.headers["authorization"] = "Bearer k"
        for content, headers, status in (
            (b"{", JSON, 400),
            (b"a" * 2000, JSON, 413),
            (b"{}", {"content-type": "text/plain"}, 415),
        ):
            answer = await client.post("/predict", content=content, headers=headers)
            assert_plain_error(answer, status)
        wrong = await client.get("/predict")
        assert_plain_error(wrong, 405)
        assert wrong.headers["allow"] == "POST"
        assert_plain_error(await client.post("/model"), 405)


async def test_a_fault_of_the_server(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """A failed run is 500 with an id for the operator, and not the cause."""

    def fail(_: object) -> None:
        raise ValueError("a secret path")

    engine.before = fail
    answer = await client.post("/predict", json={"inputs": ["a"]})
    text = assert_plain_error(answer, 500)
    assert answer.headers["x-request-id"] in text
    assert "secret" not in text


async def test_full(engine: FakeEngine) -> None:
    """A refusal for want of room is 429 and says when to try again."""
    async with client_of(engine, max_waiting_requests=1) as client:
        engine.gate.clear()
        first = asyncio.create_task(client.post("/predict", json={"inputs": ["a"]}))
        async with asyncio.timeout(10):
            while "search_document: a" not in engine.seen:
                await asyncio.sleep(0.005)
        refused = await client.post("/predict", json={"inputs": ["b"]})
        engine.gate.set()
        assert "try again" in assert_plain_error(refused, 429)
        assert refused.headers["retry-after"]
        assert (await first).status_code == 200


async def test_default_model(engine: FakeEngine) -> None:
    """The first model answers, with the operator's size and input type."""
    async with client_of([FakeEngine(MINILM), engine], dimensions=128) as client:
        answer = (await client.post("/predict", json={"inputs": ["a"]})).json()
    assert answer["model_id"] == MINILM.id
    assert len(answer["results"][0]["embedding"]) == 128


async def test_unknown_fields(engine: FakeEngine) -> None:
    """Other fields are ignored with a warning, as Encoderfile ignores them, or refused."""
    body = {"inputs": ["a"], "normalize": True}
    async with client_of(engine) as client:
        answer = await client.post("/predict", json=body)
        assert answer.headers["x-matryo-warning"] == "ignored: normalize"
    async with client_of(engine, unknown_fields="refuse") as client:
        assert_plain_error(await client.post("/predict", json=body), 422)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_document(client: httpx2.AsyncClient, name: str) -> None:
    """Each example fits its schema and succeeds, and the answer fits the document."""
    document = (await client.get("/openapi.json")).json()
    call = document["paths"]["/predict"]["post"]
    content = call["requestBody"]["content"]["application/json"]
    example = content["examples"][name]["value"]
    parts = {"components": document["components"]}
    jsonschema.validate(example, content["schema"] | parts)
    answer = await client.post("/predict", json=example)
    described = call["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), described | parts)
    assert "text/plain" in call["responses"]["422"]["content"]
