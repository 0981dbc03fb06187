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
    """POST a body."""
    return await client.post(URL, json=body)


class TestOfficialClient:
    """openai-python, unchanged, with its defaults."""

    async def test_one_text(self, sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
        """Its default asks for base64 and gets floats back, of the prefixed text."""
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
        """Texts of every length come back in input order, whatever batches they ran in."""
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
        """`extra_body` reaches our fields."""
        answer = await sdk.embeddings.create(
            model=NOMIC.id, input="x", extra_body={"input_type": "query"}
        )
        expected = engine.expected("search_query: x")
        assert np.array_equal(as_float32(answer.data[0].embedding), expected)

    async def test_errors_are_its_own(self, sdk: openai.AsyncOpenAI) -> None:
        """Refusals raise the classes that callers catch, with their fields filled."""
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
        """Front ends list models to test a key; the default comes first."""
        models = [model async for model in sdk.models.list()]
        assert [model.id for model in models] == [NOMIC.id, MINILM.id]
        assert models[0].created == NOMIC.created_s
        model = await sdk.models.retrieve("nomic-ai/nomic-embed-text-v1.5")
        assert (model.id, model.owned_by) == (NOMIC.id, "nomic-ai")
        with pytest.raises(openai.NotFoundError) as unknown:
            await sdk.models.retrieve("gpt-4")
        assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")

    async def test_request_id(self, sdk: openai.AsyncOpenAI) -> None:
        """Every answer carries an id that the client shows."""
        answer: Any = await sdk.embeddings.create(model=NOMIC.id, input="a")
        assert answer._request_id.startswith("req_")


class TestRequests:
    """What bodies may say."""

    async def test_the_shortest_body(self, client: httpx2.AsyncClient, engine: FakeEngine) -> None:
        """`input` alone is enough: the default model, as floats."""
        answer = (await post(client, input=["search_document: a"])).json()
        assert answer["model"] == NOMIC.id
        vector = as_float32(answer["data"][0]["embedding"])
        assert np.array_equal(vector, engine.expected("search_document: a"))

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
    async def test_with_and_without_v1(self, client: httpx2.AsyncClient, path: str) -> None:
        """Clients whose base URL lacks /v1 are served too."""
        assert (await client.post(path, json={"input": "a"})).status_code == 200

    async def test_empty_string_alone(self, client: httpx2.AsyncClient, engine: FakeEngine) -> None:
        """LangChain sends one for an empty document and uses the vector."""
        answer = (await post(client, input="")).json()
        assert np.array_equal(
            as_float32(answer["data"][0]["embedding"]), engine.expected("search_document: ")
        )

    async def test_other_model(self, client: httpx2.AsyncClient) -> None:
        """A model without prompts gets the text as it is."""
        answer = (await post(client, input="a", model="all-minilm-l6-v2-query")).json()
        expected = FakeEngine(MINILM).expected("a")
        assert np.array_equal(as_float32(answer["data"][0]["embedding"]), expected)

    async def test_limits_of_a_request(self, client: httpx2.AsyncClient) -> None:
        """2048 texts pass, 2049 do not; 300,000 tokens pass, one text more does not."""
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
        """The sentences that clients parse keep their shape."""
        response = await post(client, input=["a", "w " * 9000])
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "Invalid 'input[1]': maximum input length is 8192 tokens." in message
        assert "This model's maximum context length is 8192 tokens" in message

    async def test_truncate(self, client: httpx2.AsyncClient) -> None:
        """Cutting is reported in a header and in usage."""
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
        """Smaller types come as integers, and the fingerprint names them."""
        response = await post(client, input="a", dimensions=64, embedding_type=embedding_type)
        values = response.json()["data"][0]["embedding"]
        assert len(values) == length
        assert all(type(value) is int and low <= value <= high for value in values)
        assert response.headers["x-matryo-fingerprint"].endswith(f"/64/{embedding_type}")

    async def test_binary_needs_whole_bytes(self, client: httpx2.AsyncClient) -> None:
        """A size that does not fill its bytes is refused."""
        response = await post(client, input="a", dimensions=63, embedding_type="binary")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "embedding_type"


class TestHeaders:
    """What every answer carries."""

    async def test_embeddings(self, client: httpx2.AsyncClient) -> None:
        """Processing time and fingerprint are there, and JSON is called JSON."""
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
        """An untrained size is answered, with a warning."""
        response = await post(client, input="a", dimensions=100)
        assert response.status_code == 200
        assert "not trained for 100" in response.headers["x-matryo-warning"]

    async def test_request_id_of_a_gateway_is_kept(self, client: httpx2.AsyncClient) -> None:
        """An id given before us goes through, unless it could split a log or a header."""
        for given, kept in (("abc-123", True), ("a b", False), ("x" * 200, False), ("é", False)):
            headers: Any = {"x-request-id": given.encode()}
            response = await client.post(URL, json={"input": "a"}, headers=headers)
            assert (response.headers["x-request-id"] == given) is kept

    async def test_cors_is_off(self, client: httpx2.AsyncClient) -> None:
        """A browser of another origin is told nothing."""
        response = await client.post(URL, json={"input": "a"}, headers={"origin": "http://x"})
        assert not [name for name in response.headers if name.startswith("access-control")]

    async def test_cors_when_set(self, engine: FakeEngine) -> None:
        """Preflights pass without a key, name Authorization, and errors carry the header too."""
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
    """With keys set, OpenAI's routes ask for one, before anything else."""

    async def test_routes(self, engine: FakeEngine) -> None:
        """A wrong key is 401 everywhere under OpenAI's paths; operators need none."""
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
        """Who has no key cannot make the server read."""

        async def body() -> AsyncIterator[bytes]:
            pytest.fail("the body was read")
            yield b""

        async with client_of(engine, api_keys="k") as client:
            assert (await client.post(URL, content=body())).status_code == 401


class TestDefaults:
    """The operator's choices."""

    async def test_dimensions_and_input_type(self, engine: FakeEngine) -> None:
        """Requests that say nothing follow the settings."""
        async with client_of(engine, dimensions=64, default_input_type="query") as client:
            answer = (await post(client, input="a")).json()
            vector = as_float32(answer["data"][0]["embedding"])
            assert np.array_equal(vector, engine.expected("search_query: a", 64))

    async def test_strict_dimensions(self, engine: FakeEngine) -> None:
        """Untrained sizes are refused, with the trained ones."""
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
        """OpenAI's own names reach the default model, and the answer says which that is."""
        async with client_of(engine) as client:
            for name in ("text-embedding-3-small", "text-embedding-ada-002"):
                assert (await post(client, input="a", model=name)).json()["model"] == NOMIC.id
