"""Applications that embed by OpenAI's API: the requests that their sources build.

An application is too large to install for a test. Each test names the file that builds the
request, and sends the same path, headers and body.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import OpenAI

from tests.checkpoints import make_model
from tests.clients.conftest import KEY, MODEL
from tests.clients.test_frameworks import same
from tests.conftest import build_tiny, load_tiny
from tests.contract.conftest import Live, live_server
from tests.fakes import FakeEngine

shows = pytest.mark.shows
TEXTS = ["The sky is blue.", "Grass is green.", "Größe 語 🎉"]
JSON = {"content-type": "application/json"}
BEARER = {"authorization": f"Bearer {KEY}"}


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx2.Response:
    """The answer to one body."""
    return httpx2.post(url, json=body, headers=JSON | BEARER | (headers or {}))


def found(answer: httpx2.Response) -> list[Any]:
    """The vectors of an answer, which must be a 200."""
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["data"]]


class TestRagflow:
    """infiniflow/ragflow, rag/llm/embedding_model.py."""

    PACKAGE = "RAGFlow (application)"
    FROM = " (`infiniflow/ragflow`: `rag/llm/embedding_model.py`)"

    @shows(PACKAGE, "OpenAI-API-Compatible, VLLM: `drop_params`" + FROM)
    def test_openai(self, base_url: str, engine: FakeEngine) -> None:
        """`OpenAIEmbed`: OpenAI's client, 16 texts at once."""
        with OpenAI(api_key=KEY, base_url=base_url, max_retries=0) as client:
            answer = client.embeddings.create(
                input=TEXTS,
                model=MODEL,
                encoding_format="float",
                extra_body={"drop_params": True},
            )
        assert same([d.embedding for d in answer.data], engine, "search_document", TEXTS)
        assert answer.usage.total_tokens > 0

    @shows(PACKAGE, "LocalAI, LM-Studio, Xinference: plain requests" + FROM)
    def test_local(self, base_url: str, engine: FakeEngine) -> None:
        """`LocalAIEmbed`, `LmStudioEmbed`, `XinferenceEmbed`."""
        with OpenAI(api_key=KEY, base_url=base_url, max_retries=0) as client:
            answer = client.embeddings.create(input=TEXTS, model=MODEL)
        assert same([d.embedding for d in answer.data], engine, "search_document", TEXTS)

    @shows(PACKAGE, 'NVIDIA: `input_type: "query"`, `truncate: "END"`' + FROM)
    def test_nvidia(self, base_url: str, engine: FakeEngine) -> None:
        """`NvidiaEmbed` calls every text a query."""
        body = {
            "input": TEXTS,
            "input_type": "query",
            "model": MODEL,
            "encoding_format": "float",
            "truncate": "END",
        }
        answer = post(f"{base_url}/embeddings", body, {"accept": "application/json"})
        assert same(found(answer), engine, "search_query", TEXTS)

    @shows(PACKAGE, "SILICONFLOW: blank texts as one blank" + FROM)
    def test_siliconflow(self, base_url: str) -> None:
        """`SILICONFLOWEmbed` sends " " for a blank text."""
        body = {"model": MODEL, "input": [" ", TEXTS[0]], "encoding_format": "float"}
        assert len(found(post(f"{base_url}/embeddings", body))) == 2


class TestOpenWebui:
    """open-webui/open-webui, backend/open_webui/retrieval/utils.py."""

    PACKAGE = "Open WebUI (application)"
    FROM = " (`open-webui/open-webui`: `backend/open_webui/retrieval/utils.py`)"

    @shows(PACKAGE, "engine `openai`, with the headers of the user" + FROM)
    def test_plain(self, base_url: str, engine: FakeEngine) -> None:
        """`agenerate_openai_batch_embeddings`."""
        headers = {
            "X-OpenWebUI-User-Name": "Gr%C3%B6%C3%9Fe",
            "X-OpenWebUI-User-Id": "1",
            "X-OpenWebUI-User-Email": "a@b.example",
            "X-OpenWebUI-User-Role": "user",
        }
        body = {"input": TEXTS, "model": MODEL}
        answer = post(f"{base_url}/embeddings", body, headers)
        assert same(found(answer), engine, "search_document", TEXTS)

    @pytest.mark.parametrize("prefix", ["search_query: ", "search_query:"])
    @shows(PACKAGE, "`RAG_EMBEDDING_QUERY_PREFIX`, with and without a blank at its end" + FROM)
    def test_prefix(self, tmp_path: Path, prefix: str) -> None:
        """`generate_embeddings` puts the prefix straight before each text."""
        model = make_model(tmp_path, "nomic_bert", layer_norm=True, prompts=True, max_tokens=120)
        engine = load_tiny(model, build_tiny(tmp_path, model))
        texts = ["the sky is blue", "grass"]
        with live_server(engine, api_keys=KEY) as server:
            url = f"{server.url}/v1/embeddings"
            body: dict[str, Any] = {"model": model.id, "input": [prefix + text for text in texts]}
            prefixed = found(post(url, body))
            queries = found(post(url, body | {"input": texts, "input_type": "query"}))
        assert prefixed == queries

    @shows(PACKAGE, "`RAG_EMBEDDING_PREFIX_FIELD_NAME=input_type`" + FROM)
    def test_prefix_field(self, base_url: str, engine: FakeEngine) -> None:
        """The prefix goes into a field of its own."""
        body = {"input": TEXTS, "model": MODEL, "input_type": "search_query"}
        answer = post(f"{base_url}/embeddings", body)
        assert same(found(answer), engine, "search_query", TEXTS)

    @shows(PACKAGE, "engine `azure_openai`" + FROM)
    def test_azure(self, live: Live, engine: FakeEngine) -> None:
        """`agenerate_azure_openai_batch_embeddings`: the model in the path, `api-key`."""
        url = f"{live.url}/openai/deployments/{MODEL}/embeddings?api-version=2024-02-01"
        answer = httpx2.post(url, json={"input": TEXTS}, headers=JSON | {"api-key": KEY})
        assert same(found(answer), engine, "search_document", TEXTS)


class TestDify:
    """langgenius/dify-official-plugins and dify-plugin-sdks."""

    PACKAGE = "Dify (application)"
    FROM = (
        " (`langgenius/dify-official-plugins`: "
        "`models/openai_api_compatible/models/text_embedding/text_embedding.py`)"
    )
    FROM_SDK = (
        " (`langgenius/dify-plugin-sdks`: "
        "`python/dify_plugin/interfaces/model/openai_compatible/text_embedding.py`)"
    )
    FROM_LITELLM = (
        " (`BerriAI/litellm`: `litellm/router.py`, `litellm/proxy/litellm_pre_call_utils.py`)"
    )

    @pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
    @shows(PACKAGE, "the OpenAI-API-compatible plugin" + FROM)
    def test_plugin(self, base_url: str, engine: FakeEngine, encoding: dict[str, str]) -> None:
        """`_embed_in_batches`: `requests.post`, `encoding_format` if the credentials have one."""
        body = {"model": MODEL, "input": TEXTS} | encoding
        answer = post(f"{base_url}/embeddings", body)
        assert same(found(answer), engine, "search_document", TEXTS)
        assert answer.json()["usage"]["prompt_tokens"] > 0

    @shows(PACKAGE, "plugins on the SDK's class, and their test of the credentials" + FROM_SDK)
    def test_sdk(self, base_url: str, engine: FakeEngine) -> None:
        """`OAICompatEmbeddingModel`: one text in a list, a user, floats; then a "ping"."""
        body = {"input": TEXTS[:1], "model": MODEL, "user": "1", "encoding_format": "float"}
        answer = post(f"{base_url}/embeddings", body)
        assert same(found(answer), engine, "search_document", TEXTS[:1])
        ping = post(f"{base_url}/embeddings", {"input": "ping", "model": MODEL})
        assert "model" in ping.json()

    @shows(PACKAGE, "over LiteLLM's router, with what the proxy adds" + FROM_LITELLM)
    async def test_litellm(self, base_url: str, engine: FakeEngine) -> None:
        """The router that LiteLLM's proxy calls with Dify's body."""
        import litellm

        deployment = {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": base_url,
                "api_key": KEY,
                "drop_params": True,
            },
        }
        make: Any = vars(litellm)["Router"]
        router = make(model_list=[deployment], num_retries=0)
        answer = await router.aembedding(
            model=MODEL,
            input=TEXTS,
            user="1",
            encoding_format="float",
            metadata={"user_api_key_alias": "dify"},
            proxy_server_request={"url": "http://proxy/v1/embeddings", "method": "POST"},
        )
        vectors = [item["embedding"] for item in answer.data]
        assert same(vectors, engine, "search_document", TEXTS)

    @shows(PACKAGE, "LiteLLM's own fields, where a proxy hands them on" + FROM_LITELLM)
    def test_fields_of_litellm(self, base_url: str, engine: FakeEngine) -> None:
        """Fields that name the caller and change nothing."""
        body = {
            "model": MODEL,
            "input": TEXTS,
            "encoding_format": "float",
            "metadata": {"user_api_key_alias": "dify"},
            "proxy_server_request": {"url": "http://proxy/v1/embeddings", "method": "POST"},
            "drop_params": True,
            "dimensions": None,
        }
        answer = post(f"{base_url}/embeddings", body)
        assert same(found(answer), engine, "search_document", TEXTS)


class TestAnythingLlm:
    """Mintplex-Labs/anything-llm, server/utils/EmbeddingEngines."""

    PACKAGE = "AnythingLLM (application)"
    FROM = " (`Mintplex-Labs/anything-llm`: `server/utils/EmbeddingEngines`)"

    @shows(PACKAGE, "Generic OpenAI, LM Studio, LiteLLM: what OpenAI's Node client adds" + FROM)
    def test_generic(self, base_url: str, engine: FakeEngine) -> None:
        """genericOpenAi/index.js: a model and texts; the client asks for base64 by itself."""
        headers = {"x-stainless-lang": "js", "user-agent": "OpenAI/JS 4.95.1"}
        body = {"model": MODEL, "input": TEXTS, "encoding_format": "base64"}
        answer = post(f"{base_url}/embeddings", body, headers)
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in found(answer)]
        assert same(vectors, engine, "search_document", TEXTS)

    @shows(PACKAGE, "LocalAI: OpenAI's Node client of version 3" + FROM)
    def test_local_ai(self, base_url: str, engine: FakeEngine) -> None:
        """localAi/index.js: `createEmbedding`, floats."""
        body = {"model": MODEL, "input": TEXTS}
        answer = post(f"{base_url}/embeddings", body, {"user-agent": "OpenAI/NodeJS/3.2.1"})
        assert same(found(answer), engine, "search_document", TEXTS)


class TestVllmBench:
    """vllm-project/vllm, vllm/benchmarks/lib/endpoint_request_func.py."""

    PACKAGE = "vllm bench serve (application)"
    FROM = " (`vllm-project/vllm`: `vllm/benchmarks/lib/endpoint_request_func.py`)"

    @pytest.mark.parametrize("prompt", [TEXTS[0], TEXTS])
    @shows(PACKAGE, "`--backend openai-embeddings`: `truncate_prompt_tokens: -1`" + FROM)
    def test_embeddings(self, base_url: str, engine: FakeEngine, prompt: str | list[str]) -> None:
        """`async_request_openai_embeddings`; long prompts are cut."""
        body = {"model": MODEL, "input": prompt, "truncate_prompt_tokens": -1}
        answer = post(f"{base_url}/embeddings", body, {"x-request-id": "bench-0"})
        texts = [prompt] if isinstance(prompt, str) else prompt
        assert same(found(answer), engine, "search_document", texts)
        assert answer.headers["x-request-id"] == "bench-0"
        assert answer.json()["usage"]["prompt_tokens"] > 0
        long = post(f"{base_url}/embeddings", body | {"input": "word " * 9000})
        assert long.headers["x-matryo-truncated"] == "1"

    @shows(PACKAGE, "`--backend infinity-embeddings`" + FROM)
    def test_infinity(self, base_url: str, engine: FakeEngine) -> None:
        """`async_request_infinity_embeddings`: no field of its own for texts."""
        answer = post(f"{base_url}/embeddings", {"model": MODEL, "input": TEXTS})
        assert same(found(answer), engine, "search_document", TEXTS)


class TestNim:
    """langchain-ai/langchain-nvidia, langchain_nvidia_ai_endpoints/embeddings.py."""

    PACKAGE = "langchain-nvidia-ai-endpoints (application)"
    FROM = " (`langchain-ai/langchain-nvidia`: `langchain_nvidia_ai_endpoints/embeddings.py`)"

    @pytest.mark.parametrize(
        ("kind", "prefix"), [("passage", "search_document"), ("query", "search_query")]
    )
    @pytest.mark.parametrize("truncate", ["NONE", "END"])
    @shows(PACKAGE, "`NVIDIAEmbeddings`: documents and queries, `truncate` NONE and END" + FROM)
    def test_embeddings(
        self, base_url: str, engine: FakeEngine, kind: str, prefix: str, truncate: str
    ) -> None:
        """`_prepare_payload`."""
        body = {
            "input": TEXTS,
            "model": MODEL,
            "encoding_format": "float",
            "input_type": kind,
            "truncate": truncate,
            "dimensions": 256,
        }
        headers = {"accept": "application/json", "user-agent": "langchain-nvidia-ai-endpoints"}
        answer = post(f"{base_url}/embeddings", body, headers)
        assert same(found(answer), engine, prefix, TEXTS, 256)

    @shows(PACKAGE, '`modality: ["text"]` of multimodal models' + FROM)
    def test_modality(self, base_url: str, engine: FakeEngine) -> None:
        """NIM's own field for what the inputs are."""
        body = {"input": TEXTS, "model": MODEL, "input_type": "query", "modality": ["text"]}
        answer = post(f"{base_url}/embeddings", body)
        assert same(found(answer), engine, "search_query", TEXTS)
