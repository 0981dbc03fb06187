"""The OpenAPI document is correct: its examples run, and schemathesis finds no fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest

from matryo.assembly import service as assembly
from matryo.http.openai.document import REQUEST_EXAMPLES
from matryo.service.expectation import EXPECT
from tests.contract.conftest import client_of, live_server
from tests.fakes import MINILM, FakeEngine


async def fetch(client: httpx2.AsyncClient) -> Any:
    """The document that the server serves."""
    return (await client.get("/openapi.json")).json()


def resolve(document: Any, schema: Any) -> Any:
    """A schema of the document, with the schemas that it references."""
    return schema | {"components": document["components"]}


async def test_describes(client: httpx2.AsyncClient) -> None:
    """The document has the request, Matryo's fields, every error and the headers."""
    document = await fetch(client)
    assert set(document["paths"]) >= {"/v1/embeddings", "/v1/models", "/v1/models/{model}"}
    assert "/embeddings" not in document["paths"]
    call = document["paths"]["/v1/embeddings"]["post"]
    schema = document["components"]["schemas"]["EmbeddingRequest"]
    assert schema["required"] == ["input"]
    assert {"input_type", "truncate", "embedding_type"} <= set(schema["properties"])
    assert {
        "200",
        "400",
        "401",
        "403",
        "404",
        "408",
        "412",
        "413",
        "415",
        "429",
        "500",
        "503",
    } == set(call["responses"])
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                assert "x-request-id" in response["headers"]
    for path in ("/v1/models", "/v1/models/{model}"):
        assert "422" not in document["paths"][path]["get"]["responses"]  # FastAPI's own
    assert "x-matryo-fingerprint" in call["responses"]["200"]["headers"]
    assert "application/octet-stream" in call["responses"]["200"]["content"]
    assert "retry-after" in call["responses"]["429"]["headers"]
    assert (await client.get("/docs")).status_code == 200
    assert (await client.get("/redoc")).status_code == 404  # FastAPI's, with scripts from elsewhere


@pytest.mark.parametrize("name", REQUEST_EXAMPLES)
async def test_examples_run(client: httpx2.AsyncClient, name: str) -> None:
    """Each example fits its schema and succeeds, and the answer fits the document."""
    document = await fetch(client)
    call = document["paths"]["/v1/embeddings"]["post"]
    content = call["requestBody"]["content"]["application/json"]
    example = content["examples"][name]["value"]
    jsonschema.validate(example, resolve(document, content["schema"]))
    answer = await client.post("/v1/embeddings", json=example)
    assert answer.status_code == 200
    described = call["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), resolve(document, described))
    assert len(answer.json()["data"]) == (2 if name == "several" else 1)


@pytest.mark.parametrize(
    "body",
    [
        {"input": "a", "dimensions": 9, "embedding_type": "binary"},
        {"input": "a", "dimensions": 769},
        {"input": "a", "dimensions": 0},
        {"input": []},
        {"input": ["a", ""]},
        {"input": ["a", 1]},
        {"input": [[100256]]},
        {"input": [[-1]]},
        {"input": "a", "input_type": "x"},
    ],
)
async def test_what_the_schema_refuses(client: httpx2.AsyncClient, body: Any) -> None:
    """The server accepts a body exactly if the document allows it."""
    document = await fetch(client)
    schema = resolve(document, document["components"]["schemas"]["EmbeddingRequest"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, schema)
    assert (await client.post("/v1/embeddings", json=body)).status_code == 400


async def test_is_of_this_server(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, input types, token ids and the key follow the served models and the settings."""

    async def request_schema(engines: Any, **changes: Any) -> Any:
        async with client_of(engines, **changes) as client:
            document = await fetch(client)
        return document["components"]["schemas"]["EmbeddingRequest"]["properties"]

    one = await request_schema(engine)
    assert one["dimensions"]["anyOf"][0]["maximum"] == 768
    assert "clustering" in one["input_type"]["anyOf"][0]["enum"]
    assert len(one["input"]["oneOf"]) == 4
    strict = await request_schema([FakeEngine(MINILM)], strict_dimensions=True)
    assert strict["dimensions"]["anyOf"][0]["enum"] == [384]
    own = await request_schema(engine, token_input="model")
    assert own["input"]["oneOf"][2]["items"]["maximum"] == engine.vocab_size - 1
    monkeypatch.setattr(assembly, "find_table", lambda _store: None)
    assert len((await request_schema(engine))["input"]["oneOf"]) == 2

    async with client_of(engine, api_keys="sk-a") as client:
        document = await fetch(client)
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/v1/models"]["get"]["security"]
    assert "security" not in document["paths"]["/livez"]["get"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("model", ["nomic-embed-text-v1.5", "all-minilm-l6-v2"])
def test_schemathesis(tmp_path: Path, model: str) -> None:
    """Made-up good requests are accepted and bad ones refused, without undeclared answers."""
    engine = FakeEngine() if model.startswith("nomic") else FakeEngine(MINILM)
    # Of no other value than the server's own may a test say whether the server should take it.
    expected = f'[parameters]\n"header.{EXPECT}" = "{engine.fingerprint}"\n'
    (tmp_path / "schemathesis.toml").write_text(expected)
    with live_server(engine) as live:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json",
            "--max-examples", "100", "--seed", "1", "--generation-deterministic", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 13" in done.stdout


@pytest.mark.timeout(240)
def test_schemathesis_of_batches(tmp_path: Path, engine: FakeEngine) -> None:
    """The same for files and batches, as OpenAI's clients and any other send them."""
    with live_server(engine, batch=True, batch_dir=tmp_path / "batches") as live:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json",
            "--include-path-regex", "/v1/(files|batches)",
            "--max-examples", "50", "--seed", "1", "--generation-deterministic", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 9" in done.stdout


async def test_the_page_is_all_there_is(engine: FakeEngine, tmp_path: Path) -> None:
    """`/docs` shows every operation and example, names no other origin and runs no script."""
    async with client_of(engine, api_keys="k", batch=True, batch_dir=tmp_path) as client:
        answer = await client.get("/docs")
        document = (await client.get("/openapi.json")).json()
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for word in ("//", "<script", "@import", "url(", "src="):
        assert word not in answer.text
    for path in document["paths"]:
        assert f"{path}</code>" in answer.text
    assert "Bearer YOUR_KEY" in answer.text
    assert "{&quot;input&quot;: &quot;The sky is blue.&quot;}" in answer.text
