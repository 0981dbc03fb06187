"""`Accept: application/octet-stream` on OpenAI's route gives the matrix as bytes."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pytest

from tests.contract.conftest import entered_application, live_server, wait_until
from tests.fakes import FakeEngine

RAW = {"accept": "application/octet-stream"}


def matrix_of(answer: httpx2.Response) -> Any:
    """The matrix of an answer, by its headers alone."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    shape = [int(size) for size in answer.headers["x-matryo-shape"].split(",")]
    dtype = np.dtype(answer.headers["x-matryo-dtype"]).newbyteorder("<")
    return np.frombuffer(answer.content, dtype).reshape(shape)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/openai/deployments/nomic-embed-text/embeddings"]
)
@pytest.mark.parametrize("n_texts", [1, 6, 400])
@pytest.mark.parametrize("kind", [None, "int8", "uint8", "binary", "ubinary"])
async def test_equals_json(
    client: httpx2.AsyncClient, path: str, n_texts: int, kind: str | None
) -> None:
    """The numbers, the fingerprint and the usage are those of the JSON answer."""
    body = {"input": [f"t {n}" for n in range(n_texts)], "embedding_type": kind, "dimensions": 256}
    plain = await client.post(path, json=body)
    raw = await client.post(path, json=body, headers=RAW)
    rows = [row["embedding"] for row in plain.json()["data"]]
    assert np.array_equal(matrix_of(raw), np.array(rows, raw.headers["x-matryo-dtype"]))
    assert raw.headers["x-matryo-fingerprint"] == plain.headers["x-matryo-fingerprint"]
    assert raw.headers["x-matryo-prompt-tokens"] == str(plain.json()["usage"]["prompt_tokens"])
    assert raw.headers["x-matryo-model"] == plain.json()["model"]
    assert raw.headers["content-length"] == str(len(raw.content))


async def test_errors_stay_json(client: httpx2.AsyncClient) -> None:
    """A request that is refused gets OpenAI's error object, whatever it accepts."""
    answer = await client.post("/v1/embeddings", json={"input": []}, headers=RAW)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "empty_array"


async def test_json_for_those_who_take_anything(client: httpx2.AsyncClient) -> None:
    """A client that accepts anything gets JSON."""
    for accept in ("*/*", "application/json, application/octet-stream", "text/html"):
        answer = await client.post(
            "/v1/embeddings", json={"input": "a"}, headers={"accept": accept}
        )
        assert answer.json()["object"] == "list"


def test_the_lease_is_held_until_the_bytes_are_written(engine: FakeEngine) -> None:
    """A caller that reads slowly keeps the memory of its vectors in the budget until the end."""
    body = {"input": [f"t {n}" for n in range(2000)]}
    n_bytes = 4 * 768 * 2000
    with live_server(engine) as live:
        budget = live.application.state.context.service.budget
        with httpx2.stream(
            "POST", f"{live.url}/v1/embeddings", json=body, headers=RAW, timeout=30
        ) as answer:
            assert answer.headers["content-length"] == str(n_bytes)
            assert budget.held >= n_bytes
            assert sum(map(len, answer.iter_raw())) == n_bytes
        wait_until(lambda: budget.held == 0)


async def test_floats_need_no_memory_beside_the_vectors(engine: FakeEngine) -> None:
    """Bytes are sent from the matrix: a budget that JSON's pieces do not fit in has room for them."""
    body = {"input": ["a"] * 100, "dimensions": 768}
    async with entered_application(
        engine, memory_budget_bytes=1_000_000, max_body_bytes=100_000
    ) as (_, client):
        assert (await client.post("/v1/embeddings", json=body)).status_code == 429
        assert matrix_of(await client.post("/v1/embeddings", json=body, headers=RAW)).shape == (
            100,
            768,
        )
