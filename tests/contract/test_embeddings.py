"""OpenAI's contract, in process, through the official client and through raw HTTP."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from matryo.core.errors import SettingsInvalid
from matryo.engine import Engine
from tests.contract.conftest import client_of, openai_of
from tests.fakes import MINILM, NOMIC, FakeEngine, as_float32

URL = "/v1/embeddings"


async def post(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    """The response to a POST of a body."""
    return await client.post(URL, json=body)


class TestOfficialClient:
    """openai-python, unchanged, with its defaults."""

    async def test_one_text(self, sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        """The client's default, base64, gives the floats of the prefixed text."""
        answer = await sdk.embeddings.create(model=NOMIC.id, input="blue sky")
        assert answer.model == NOMIC.id
        assert answer.object == "list"
        (item,) = answer.data
        expected = engine.expected("search_document: blue sky")
        assert np.array_equal(as_float32(item.embedding), expected)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 5

    @pytest.mark.parametrize("encoding_format", ["float", "base64"])
    async def test_many_texts_in_order(
        self, sdk: openai.AsyncOpenAI, engine: FakeEngine, encoding_format: Any
    ) -> None:
        """The vectors of texts of many lengths come back in input order."""
        texts = [f"{'w ' * (n * 37 % 101)}{n}" for n in range(100)]
        answer = await sdk.embeddings.create(
            model=NOMIC.id, input=texts, encoding_format=encoding_format, dimensions=64
        )
        assert [item.index for item in answer.data] == list(range(100))
        for text, item in zip(texts, answer.data, strict=True):
            value: Any = item.embedding
            if isinstance(value, str):
                value = np.frombuffer(base64.b64decode(value), "<f4")
            assert np.array_equal(
                as_float32(value), engine.expected(f"search_document: {text}", 64)
            )

    async def test_extensions_by_extra_body(
        self, sdk: openai.AsyncOpenAI, engine: FakeEngine
    ) -> None:
        """`extra_body` sets the fields that Matryo adds."""
        answer = await sdk.embeddings.create(
            model=NOMIC.id, input="x", extra_body={"input_type": "query"}
        )
        expected = engine.expected("search_query: x")
        assert np.array_equal(as_float32(answer.data[0].embedding), expected)

    async def test_errors_are_its_own(self, sdk: openai.AsyncOpenAI) -> None:
        """Refusals raise the client's error classes, with their fields set."""
        with pytest.raises(openai.BadRequestError) as bad:
            await sdk.embeddings.create(model=NOMIC.id, input=["a", ""])
        assert bad.value.param == "input"
        assert bad.value.code == "empty_string"
        assert bad.value.type == "invalid_request_error"
        assert bad.value.request_id
        with pytest.raises(openai.NotFoundError) as unknown:
            await sdk.embeddings.create(model="gpt-4", input="a")
        assert unknown.value.code == "model_not_found"

    async def test_models(self, sdk: openai.AsyncOpenAI) -> None:
        """The list of models begins with the default model."""
        models = [model async for model in sdk.models.list()]
        assert [model.id for model in models] == [NOMIC.id, MINILM.id]
        assert models[0].created == NOMIC.created_s
        model = await sdk.models.retrieve("nomic-ai/nomic-embed-text-v1.5")
        assert (model.id, model.owned_by) == (NOMIC.id, "nomic-ai")
        with pytest.raises(openai.NotFoundError) as unknown:
            await sdk.models.retrieve("gpt-4")
        assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")

    async def test_request_id(self, sdk: openai.AsyncOpenAI) -> None:
        """Every answer has a request id, which the client shows."""
        answer: Any = await sdk.embeddings.create(model=NOMIC.id, input="a")
        assert answer._request_id.startswith("req_")


class TestRequests:
    """Fields and values of a request's body."""

    async def test_the_shortest_body(self, client: httpx2.AsyncClient, engine: FakeEngine) -> None:
        """A body with `input` alone gives floats of the default model."""
        answer = (await post(client, input=["search_document: a"])).json()
        assert answer["model"] == NOMIC.id
        vector = as_float32(answer["data"][0]["embedding"])
        assert np.array_equal(vector, engine.expected("search_document: a"))

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
    async def test_with_and_without_v1(self, client: httpx2.AsyncClient, path: str) -> None:
        """The routes also work without /v1, for clients whose base URL lacks it."""
        assert (await client.post(path, json={"input": "a"})).status_code == 200

    async def test_empty_string_alone(self, client: httpx2.AsyncClient, engine: FakeEngine) -> None:
        """An empty string has a vector, which LangChain needs for empty documents."""
        answer = (await post(client, input="")).json()
        assert np.array_equal(
            as_float32(answer["data"][0]["embedding"]), engine.expected("search_document: ")
        )

    async def test_other_model(self, client: httpx2.AsyncClient) -> None:
        """A model without prompts gets the text without a prefix."""
        answer = (await post(client, input="a", model="all-minilm-l6-v2-query")).json()
        expected = FakeEngine(MINILM).expected("a")
        assert np.array_equal(as_float32(answer["data"][0]["embedding"]), expected)

    async def test_limits_of_a_request(self, client: httpx2.AsyncClient) -> None:
        """2048 texts and 300,000 tokens are accepted; one more text is refused."""
        assert (await post(client, input=["a"] * 2048, dimensions=1)).status_code == 200
        error = (await post(client, input=["a"] * 2049)).json()["error"]
        assert error["code"] == "array_above_max_length"
        long = "w " * 2997  # 3000 tokens with prefix, CLS and SEP
        assert (await post(client, input=[long] * 100, dimensions=1)).status_code == 200
        response = await post(client, input=[*[long] * 100, "a"])
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == error["code"] == "max_tokens_per_request"
        assert error["message"].startswith("Requested 300004 tokens, max 300000 tokens per request")

    async def test_too_long(self, client: httpx2.AsyncClient) -> None:
        """The errors have the sentences that clients parse."""
        response = await post(client, input=["a", "w " * 9000])
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "Invalid 'input[1]': maximum input length is 8192 tokens." in message
        assert "This model's maximum context length is 8192 tokens" in message

    async def test_truncate(self, client: httpx2.AsyncClient) -> None:
        """A cut text is reported in a header and in usage."""
        response = await post(client, input=["a", "w " * 9000, "w " * 9999], truncate=True)
        assert response.status_code == 200
        assert response.headers["x-matryo-truncated"] == "2"
        assert response.json()["usage"]["prompt_tokens"] == 4 + 2 * 8192
        assert "x-matryo-truncated" not in (await post(client, input="a", truncate=True)).headers

    @pytest.mark.parametrize(
        ("embedding_type", "length", "low", "high"),
        [
            ("int8", 64, -127, 127),
            ("uint8", 64, 1, 255),
            ("binary", 8, -128, 127),
            ("ubinary", 8, 0, 255),
        ],
    )
    async def test_embedding_types(
        self, client: httpx2.AsyncClient, embedding_type: str, length: int, low: int, high: int
    ) -> None:
        """Smaller types come as integers, and the fingerprint names the type."""
        response = await post(client, input="a", dimensions=64, embedding_type=embedding_type)
        values = response.json()["data"][0]["embedding"]
        assert len(values) == length
        assert all(type(value) is int and low <= value <= high for value in values)
        assert response.headers["x-matryo-fingerprint"].endswith(f"/64/{embedding_type}")

    async def test_binary_needs_whole_bytes(self, client: httpx2.AsyncClient) -> None:
        """A binary vector whose size eight does not divide is refused."""
        response = await post(client, input="a", dimensions=63, embedding_type="binary")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "embedding_type"


class TestHeaders:
    """The headers of every answer."""

    async def test_embeddings(self, client: httpx2.AsyncClient) -> None:
        """An answer has the headers of processing time, fingerprint and content type."""
        response = await post(client, input="a")
        assert response.headers["content-type"] == "application/json"
        assert int(response.headers["openai-processing-ms"]) >= 0
        expected = f"{NOMIC.id}/fp32/fake/document/768/float"
        assert response.headers["x-matryo-fingerprint"] == expected
        assert "x-matryo-warning" not in response.headers

    async def test_fingerprint_tells_what_differs(self, client: httpx2.AsyncClient) -> None:
        """Vectors that may not share an index have different fingerprints."""
        bodies: list[dict[str, Any]] = [
            {},
            {"dimensions": 64},
            {"input_type": "query"},
            {"embedding_type": "int8"},
            {"model": "all-minilm"},
        ]
        seen = {
            (await post(client, input="a", **body)).headers["x-matryo-fingerprint"]
            for body in bodies
        }
        assert len(seen) == len(bodies)
        query = await post(client, input="a", model="all-minilm", input_type="query")
        assert query.headers["x-matryo-fingerprint"] in seen  # MiniLM has no prompts

    async def test_warning(self, client: httpx2.AsyncClient) -> None:
        """An untrained output size is answered with a warning."""
        response = await post(client, input="a", dimensions=100)
        assert response.status_code == 200
        assert "not trained for 100" in response.headers["x-matryo-warning"]

    async def test_request_id_of_a_gateway_is_kept(self, client: httpx2.AsyncClient) -> None:
        """A gateway's request id is kept, unless it could split a log line or a header."""
        for given, kept in (("abc-123", True), ("a b", False), ("x" * 200, False), ("é", False)):
            headers: Any = {"x-request-id": given.encode()}
            response = await client.post(URL, json={"input": "a"}, headers=headers)
            assert (response.headers["x-request-id"] == given) is kept

    async def test_cors_is_off(self, client: httpx2.AsyncClient) -> None:
        """A browser of an unknown origin gets no CORS headers."""
        response = await client.post(URL, json={"input": "a"}, headers={"origin": "http://x"})
        assert not [name for name in response.headers if name.startswith("access-control")]

    async def test_cors_when_set(self, engine: FakeEngine) -> None:
        """Preflights need no key and allow Authorization; errors have the CORS header too."""
        async with client_of(engine, cors_origins="http://x", api_keys="k") as client:
            preflight = await client.options(
                URL,
                headers={
                    "origin": "http://x",
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization,content-type,x-stainless-os",
                },
            )
            assert preflight.status_code == 200
            allowed = preflight.headers["access-control-allow-headers"].lower()
            assert "authorization" in allowed
            assert "x-stainless-os" in allowed
            refused = await client.post(URL, json={}, headers={"origin": "http://x"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "http://x"
            assert "x-request-id" in refused.headers["access-control-expose-headers"]
            elsewhere = {"origin": "http://y", "access-control-request-method": "POST"}
            preflight = await client.options(URL, headers=elsewhere)
            assert preflight.status_code == 400
            assert "MATRYO_CORS_ORIGINS" in preflight.json()["error"]["message"]
            assert "x-request-id" in preflight.headers
            assert "access-control-allow-origin" not in preflight.headers


class TestKeys:
    """If keys are set, OpenAI's routes check the key first."""

    async def test_routes(self, engine: FakeEngine) -> None:
        """A wrong key is 401 under all of OpenAI's paths; the operator's routes need no key."""
        async with client_of(engine, api_keys="sk-one,sk-two") as client:
            for method, path in (
                ("POST", URL),
                ("POST", "/embeddings"),
                ("GET", "/v1/models"),
                ("GET", f"/v1/models/{NOMIC.id}"),
            ):
                response = await client.request(method, path, content=b"not even JSON")
                assert response.status_code == 401
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert response.headers["x-request-id"]
            for path in ("/livez", "/readyz", "/health", "/metrics"):
                assert (await client.get(path)).status_code == 200
            with pytest.raises(openai.AuthenticationError) as wrong:
                await openai_of(client, api_key="sk-three").embeddings.create(model="", input="a")
            assert wrong.value.code == "invalid_api_key"
            answer = await openai_of(client, api_key="sk-two").embeddings.create(
                model=NOMIC.id, input="a"
            )
            assert len(answer.data) == 1

    async def test_no_key_is_read_before_the_body(self, engine: FakeEngine) -> None:
        """The server does not read the body of a request without a key."""

        async def body() -> AsyncIterator[bytes]:
            pytest.fail("the body was read")
            yield b""

        async with client_of(engine, api_keys="k") as client:
            assert (await client.post(URL, content=body())).status_code == 401


class TestDefaults:
    """Settings of the operator."""

    async def test_dimensions_and_input_type(self, engine: FakeEngine) -> None:
        """Requests without these fields follow the settings."""
        async with client_of(engine, dimensions=64, default_input_type="query") as client:
            answer = (await post(client, input="a")).json()
            vector = as_float32(answer["data"][0]["embedding"])
            assert np.array_equal(vector, engine.expected("search_query: a", 64))

    async def test_strict_dimensions(self, engine: FakeEngine) -> None:
        """Untrained sizes are refused, and the error lists the trained sizes."""
        async with client_of(engine, strict_dimensions=True) as client:
            response = await post(client, input="a", dimensions=100)
            assert response.status_code == 400
            assert "768, 512, 256, 128, 64" in response.json()["error"]["message"]

    async def test_a_strict_default(self, engine: FakeEngine) -> None:
        """A default size that strictness refuses is refused at the start, for every model."""
        both: list[Engine] = [engine, FakeEngine(MINILM)]
        for engines, size in ((engine, 300), (both, 256)):
            with pytest.raises(SettingsInvalid, match=f"MATRYO_DIMENSIONS is {size}.*trained for"):
                async with client_of(engines, dimensions=size, strict_dimensions=True):
                    pass
            async with client_of(engines, dimensions=size) as client:
                assert (await post(client, input="a")).status_code == 200
        async with client_of(engine, dimensions=256, strict_dimensions=True) as client:
            assert (await post(client, input="a")).status_code == 200

    async def test_aliases(self, engine: FakeEngine) -> None:
        """OpenAI's model names mean the default model, and the answer has its name."""
        async with client_of(engine) as client:
            for name in ("text-embedding-3-small", "text-embedding-ada-002"):
                assert (await post(client, input="a", model=name)).json()["model"] == NOMIC.id


class TestOtherServersClients:
    """Paths, headers, names and fields by which other servers' clients call."""

    @pytest.mark.parametrize(
        "path",
        [
            "/openai/deployments/nomic-embed-text-v1.5/embeddings?api-version=2024-10-21",
            "/openai/deployments/nomic-ai%2Fnomic-embed-text-v1.5/embeddings",
            "/openai/v1/embeddings",
        ],
    )
    async def test_azure(self, client: httpx2.AsyncClient, path: str) -> None:
        """Azure's paths; the deployment in the path wins over the body's model."""
        body = {"input": "a", "model": "all-minilm-l6-v2" if "deployments" in path else None}
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "nomic-embed-text-v1.5"

    async def test_azure_of_no_model(self, client: httpx2.AsyncClient) -> None:
        """An unknown deployment is an unknown model."""
        answer = await client.post("/openai/deployments/gpt-4/embeddings", json={"input": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")

    async def test_api_key_header(self, engine: FakeEngine) -> None:
        """Azure's header is as good as Authorization, on every route."""
        async with client_of(engine, api_keys="sk-a") as client:
            for headers, status in (
                ({"api-key": "sk-a"}, 200),
                ({"api-key": "sk-b"}, 401),
                ({}, 401),
            ):
                assert (await client.get("/v1/models", headers=headers)).status_code == status
                answer = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
                assert answer.status_code == status

    @pytest.mark.parametrize(
        "name",
        [
            "nomic-embed-text:latest",
            "nomic-embed-text:v1.5",
            "text-embedding-nomic-embed-text-v1.5",
            "Nomic-Embed-Text-V1.5",
            "NOMIC-AI/nomic-embed-text-v1.5",
            "Text-Embedding-3-Small",
        ],
    )
    async def test_names(self, client: httpx2.AsyncClient, name: str) -> None:
        """Ollama's and LM Studio's names, in any case; and with a suffix."""
        for spelled in (name, f"{name}-query"):
            answer = await client.post("/v1/embeddings", json={"input": "a", "model": spelled})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "nomic-embed-text-v1.5"

    @pytest.mark.parametrize(
        ("path", "meant"),
        [
            ("/v1/v1/embeddings", "/v1/embeddings"),
            ("/v1//embeddings", "/v1/embeddings"),
            ("/v1/embeddings/", "/v1/embeddings"),
            ("/api/embedding", "/v1/embeddings"),
            ("/v1/v1/models/x", "/v1/models"),
            ("/ready", "/readyz"),
        ],
    )
    async def test_near_paths(self, client: httpx2.AsyncClient, path: str, meant: str) -> None:
        """A wrong path names the right one."""
        answer = await client.post(path, json={"input": "a"})
        assert answer.status_code == 404
        assert f"Did you mean {meant}?" in answer.json()["error"]["message"]

    async def test_a_path_near_nothing(self, client: httpx2.AsyncClient) -> None:
        """A path that is near nothing gets no advice, and is not repeated whole."""
        message = (await client.get("/" + "x" * 3000)).json()["error"]["message"]
        assert "Did you mean" not in message
        assert len(message) < 400

    async def test_private_network(self, engine: FakeEngine) -> None:
        """A page of an allowed origin may call a server on a private network, others may not."""
        headers = {
            "access-control-request-method": "POST",
            "access-control-request-private-network": "true",
        }
        async with client_of(engine, cors_origins="https://a.example") as client:
            for origin, status in (("https://a.example", 200), ("https://b.example", 400)):
                answer = await client.options(
                    "/v1/embeddings", headers=headers | {"origin": origin}
                )
                assert answer.status_code == status
                allowed = answer.headers.get("access-control-allow-private-network")
                assert allowed == ("true" if status == 200 else None)

    async def test_ignored_fields(self, client: httpx2.AsyncClient, engine: FakeEngine) -> None:
        """What changes nothing is ignored with a warning; the vector is the plain one."""
        body = {"input": "a", "metadata": {}, "drop_params": True}
        answer = await client.post("/v1/embeddings", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-matryo-warning"] == "ignored: metadata, drop_params"
        vector = answer.json()["data"][0]["embedding"]
        assert np.array_equal(as_float32(vector), engine.expected("search_document: a"))

    async def test_unknown_words(self, client: httpx2.AsyncClient) -> None:
        """Texts that the model cannot read whole are counted in a header and a metric."""
        texts = ["a b", "\ufffd c", "\ufffd\ufffd"]
        answer = await client.post("/v1/embeddings", json={"input": texts})
        assert answer.headers["x-matryo-unknown"] == "2"
        plain = await client.post("/v1/embeddings", json={"input": "a"})
        assert "x-matryo-unknown" not in plain.headers
        metrics = (await client.get("/metrics")).text
        assert 'matryo_unknown_texts_total{model="nomic-embed-text-v1.5"} 2.0' in metrics
