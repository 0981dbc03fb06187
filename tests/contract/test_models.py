"""What the server says of its models: `GET /v1/models/{id}`."""

from __future__ import annotations

import asyncio
import hashlib
import platform
from typing import Any

import httpx2
import jsonschema
import openai
import pytest

import matryo
from tests.contract.conftest import client_of, entered_application, openai_of
from tests.contract.test_keys import auth, line
from tests.contract.test_raw import RAW
from tests.fakes import MINILM, NOMIC, UNKNOWN, FakeEngine


async def details(client: httpx2.AsyncClient, model: str = NOMIC.id) -> Any:
    """What the server says of a model."""
    answer = await client.get(f"/v1/models/{model}")
    assert answer.status_code == 200
    return answer.json()


async def test_facts(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """Everything that shapes a vector, and what a request may ask; by any name and path."""
    found = await details(client)
    fingerprint = (await client.post("/v1/embeddings", json={"input": "a"})).headers[
        "x-matryo-fingerprint"
    ]
    assert fingerprint.startswith(f"{found['fingerprint']}/")
    del found["canary"], found["runtime"]["cpu"]
    prompts = dict(NOMIC.prompts)
    assert found == {
        "id": NOMIC.id,
        "object": "model",
        "created": NOMIC.created_s,
        "owned_by": NOMIC.owned_by,
        "precision": "fp32",
        "fingerprint": engine.fingerprint,
        "weights_sha256": engine.facts.weights_sha256,
        "tokenizer_sha256": engine.facts.tokenizer_sha256,
        "output_steps": list(engine.manifest.output.steps),
        "settings_key": engine.manifest.settings_key,
        "dimensions": {
            "native": 768,
            "trained": [768, 512, 256, 128, 64],
            "can_be_cut": True,
            "default": 768,
            "strict": False,
        },
        "prompts": prompts,
        "input_types": list(NOMIC.input_type_names),
        "default_input_type": "document",
        "limits": {
            "max_tokens": 8192,
            "max_inputs": 2048,
            "max_request_tokens": 300_000,
            "max_body_bytes": 16_777_216,
        },
        "unknown_token_id": UNKNOWN,
        "runtime": {
            "matryo": matryo.__version__,
            "onnxruntime": "0.0",
            "artifact_sha256": engine.facts.artifact_sha256,
            "native": 0,
            "machine": platform.machine(),
        },
    }
    for path in ("/models/", "/openai/v1/models/"):
        answer = await client.get(f"{path}nomic-ai/nomic-embed-text-v1.5")
        assert answer.json()["fingerprint"] == engine.fingerprint
    listed = (await client.get("/v1/models")).json()["data"][0]
    assert set(listed) == {"id", "object", "created", "owned_by"}


async def test_a_model_without_prompts(client: httpx2.AsyncClient) -> None:
    """The model has no prompts, and takes every standard input type."""
    found = await details(client, MINILM.id)
    assert found["prompts"] == {}
    assert set(found["input_types"]) >= {"query", "document", "none", "passage"}
    assert found["dimensions"]["trained"] == [384]


async def test_the_operators_defaults(engine: FakeEngine) -> None:
    """Defaults are what a request gets that names nothing."""
    changes = {"dimensions": 256, "default_input_type": "query", "strict_dimensions": True}
    async with client_of(engine, **changes, max_inputs=7) as client:
        found = await details(client)
        answer = await client.post("/v1/embeddings", json={"input": "a"})
    assert found["default_input_type"] == "query"
    assert found["dimensions"]["default"] == 256
    assert found["dimensions"]["strict"] is True
    assert found["limits"]["max_inputs"] == 7
    assert answer.headers["x-matryo-fingerprint"] == f"{found['fingerprint']}/query/256/float"


async def test_the_document_describes_the_answer(client: httpx2.AsyncClient) -> None:
    """The answer is what the OpenAPI document says, and has nothing else."""
    document = (await client.get("/openapi.json")).json()
    described = document["paths"]["/v1/models/{model}"]["get"]["responses"]["200"]
    schema = described["content"]["application/json"]["schema"]
    found = await details(client)
    jsonschema.validate(found, schema | {"components": document["components"]})
    assert set(found) == set(document["components"]["schemas"]["ModelDetails"]["properties"])


async def test_the_official_client(client: httpx2.AsyncClient) -> None:
    """OpenAI's client reads its own fields, and passes on the others."""
    model = await openai_of(client).models.retrieve(NOMIC.id)
    assert (model.id, model.owned_by) == (NOMIC.id, NOMIC.owned_by)
    assert (model.model_extra or {})["precision"] == "fp32"
    with pytest.raises(openai.NotFoundError):
        await openai_of(client).models.retrieve("nomic-embed-text-v2")


class TestCanary:
    """The vectors of fixed texts."""

    async def test_is_what_requests_get(self, client: httpx2.AsyncClient) -> None:
        """Digest and components are those of the route's own vectors, of every input type."""
        canary = (await details(client))["canary"]
        assert canary["version"] == 1
        assert canary["dimensions"] == 768
        assert set(canary["vectors"]) == {*NOMIC.prompts, "none"}
        for input_type, shown in canary["vectors"].items():
            body = {"input": canary["texts"], "input_type": input_type}
            raw = await client.post("/v1/embeddings", json=body, headers=RAW)
            assert hashlib.sha256(raw.content).hexdigest() == shown["sha256"]
            answer = (await client.post("/v1/embeddings", json=body)).json()
            vectors = [item["embedding"][:4] for item in answer["data"]]
            assert shown["components"] == vectors

    async def test_head(self, client: httpx2.AsyncClient) -> None:
        """HEAD has the headers of GET."""
        head = await client.head(f"/v1/models/{NOMIC.id}")
        answer = await client.get(f"/v1/models/{NOMIC.id}")
        assert head.content == b""
        assert head.headers["content-length"] == str(len(answer.content))

    async def test_no_room(self, engine: FakeEngine) -> None:
        """Without room the facts come all the same, and later the canary too."""
        async with entered_application(engine, queue_tokens=10) as (application, client):
            engine.gate.clear()
            running = asyncio.create_task(client.post("/v1/embeddings", json={"input": "a " * 20}))
            while application.state.context.service._scheduler.n_requests == 0:
                await asyncio.sleep(0.001)
            busy = await details(client)
            assert busy["canary"] is None
            document = (await client.get("/openapi.json")).json()
            described = document["components"]["schemas"]["ModelDetails"]
            jsonschema.validate(busy, described | {"components": document["components"]})
            engine.gate.set()
            await running
            assert (await details(client))["canary"]

    async def test_too_slow(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer does not wait for long; the computation goes on."""
        monkeypatch.setattr("matryo.http.openai.models._CANARY_S", 0.01)
        async with client_of(engine) as client:
            engine.gate.clear()
            assert (await details(client))["canary"] is None
            engine.gate.set()
            while (await details(client))["canary"] is None:
                await asyncio.sleep(0.001)

    async def test_a_model_that_fails(self, engine: FakeEngine) -> None:
        """The facts come all the same."""
        async with client_of(engine) as client:

            def fail(_: object) -> None:
                raise ValueError("broken")

            engine.before = fail
            assert (await details(client))["canary"] is None

    async def test_costs_no_key(self, engine: FakeEngine) -> None:
        """A key without a token left may still ask what is served."""
        keys = line("a", ", tokens_per_day = 1, requests_per_minute = 1")
        async with client_of(engine, keys=keys) as client:
            answer = await client.get(f"/v1/models/{NOMIC.id}", headers=auth("a"))
            assert answer.json()["canary"]
            assert answer.headers["x-ratelimit-remaining-requests"] == "1"
