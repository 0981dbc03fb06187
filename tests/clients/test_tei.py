"""Clients of text-embeddings-inference, as they come."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient

from tests.clients.test_frameworks import same
from tests.contract.conftest import Live, live_server
from tests.fakes import FakeEngine, as_float32

shows = pytest.mark.shows
PACKAGE = "huggingface_hub"
TEXTS = ["The sky is blue.", "Größe 語 🎉"]
KEY = "hf_test"


@pytest.fixture
def locked(engine: FakeEngine) -> Iterator[Live]:
    """A server with a key."""
    with live_server(engine, api_keys=KEY) as live:
        yield live


@pytest.fixture
def client(locked: Live) -> InferenceClient:
    """Hugging Face's client."""
    return InferenceClient(locked.url, token=KEY)


@shows(PACKAGE, "`InferenceClient.feature_extraction`: one text and several")
def test_texts(client: InferenceClient, engine: FakeEngine) -> None:
    """The vectors are those of documents."""
    expected = [engine.expected(f"search_document: {text}") for text in TEXTS]
    assert np.array_equal(as_float32(client.feature_extraction(TEXTS)), expected)
    assert np.array_equal(as_float32(client.feature_extraction(TEXTS[0])), expected[:1])


@shows(PACKAGE, "`prompt_name`, `normalize`, `truncate`, `truncation_direction`, `dimensions`")
def test_fields(client: InferenceClient, engine: FakeEngine) -> None:
    """The fields mean what they mean for TEI."""
    found = client.feature_extraction(
        TEXTS[0],
        prompt_name="query",
        normalize=False,
        truncate=True,
        truncation_direction="left",
        dimensions=64,
    )
    ids = engine.tokenize([f"search_query: {TEXTS[0]}"])[0].ids
    assert np.array_equal(as_float32(found), [engine.raw(ids, 64)])


@shows(
    PACKAGE,
    "as LangChain's `HuggingFaceEndpointEmbeddings` calls it (`langchain-ai/langchain`: "
    "`libs/partners/huggingface/langchain_huggingface/embeddings/huggingface_endpoint.py`)",
)
def test_langchain(client: InferenceClient, engine: FakeEngine) -> None:
    """A keyword, lines joined, lists of lists, and one text for a query."""
    texts = [text.replace("\n", " ") for text in ("The sky\nis blue.", TEXTS[1])]
    found: list[list[float]] = client.feature_extraction(text=texts).tolist()  # pyright: ignore[reportCallIssue] - so it calls it
    assert same(found, engine, "search_document", texts)
    query = client.feature_extraction(text=texts[:1]).tolist()[0]
    assert same([query], engine, "search_document", texts[:1])


class TestLlamaIndex:
    """Texts and queries in lists, over httpx."""

    PACKAGE = "llama-index-embeddings-text-embeddings-inference"

    @shows(PACKAGE, "`TextEmbeddingsInference(base_url=...)`: texts, batches, in async")
    async def test_texts(self, locked: Live, engine: FakeEngine) -> None:
        """Prefixes of its own are not doubled."""
        module = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
        embedding = module.TextEmbeddingsInference(
            model_name="any",
            base_url=locked.url,
            auth_token=KEY,
            text_instruction="search_document:",
            query_instruction="search_query:",
        )
        found = embedding.get_text_embedding_batch(TEXTS)
        assert same(found, engine, "search_document", TEXTS)
        query = await embedding.aget_query_embedding(TEXTS[0])
        assert same([query], engine, "search_query", TEXTS[:1])


class TestHaystack:
    """Hugging Face's client, and `normalize: false` unless another value is given."""

    PACKAGE = "huggingface-api-haystack"

    @shows(PACKAGE, "`HuggingFaceAPITextEmbedder`, `HuggingFaceAPIDocumentEmbedder` over HTTP")
    def test_embedders(self, locked: Live, engine: FakeEngine) -> None:
        """A query and documents; without `normalize`, the vector before the last step."""
        pytest.importorskip("haystack_integrations.components.embedders.huggingface_api")
        from haystack import Document
        from haystack.utils import Secret

        module = importlib.import_module(
            "haystack_integrations.components.embedders.huggingface_api"
        )
        shared: dict[str, Any] = {
            "api_type": "text_embeddings_inference",
            "api_params": {"url": locked.url},
            "token": Secret.from_token(KEY),
        }
        embedder = module.HuggingFaceAPIDocumentEmbedder(
            **shared, normalize=True, progress_bar=False
        )
        found = embedder.run([Document(content=text) for text in TEXTS])["documents"]
        assert same([one.embedding for one in found], engine, "search_document", TEXTS)
        embedder = module.HuggingFaceAPITextEmbedder(**shared, prefix="search_query: ")
        vector = embedder.run(TEXTS[0])["embedding"]
        ids = engine.tokenize([f"search_query: {TEXTS[0]}"])[0].ids
        assert np.array_equal(as_float32(vector), engine.raw(ids, 768))


def post(live: Live, body: dict[str, Any]) -> Any:
    """The answer of `/embed` to a body with a key."""
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx2.post(f"{live.url}/embed", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@shows(
    "Milvus (vector store)",
    "the function `TextEmbedding` with the provider `TEI`: prompts in the texts, `truncate`, "
    "`truncation_direction` (`milvus-io/milvus`: `internal/util/function/models/tei/tei.go`)",
)
def test_milvus(locked: Live, engine: FakeEngine) -> None:
    """Fields at their zero value are left out; a prompt in a text is not doubled."""
    prompted = [f"search_query: {text}" for text in TEXTS]
    body = {"inputs": prompted, "truncate": True, "truncation_direction": "Right"}
    assert same(post(locked, body), engine, "search_query", TEXTS)
    assert same(post(locked, {"inputs": TEXTS}), engine, "search_document", TEXTS)


@shows(
    "Chroma (vector store)",
    "`HuggingFaceEmbeddingServer` (`chroma-core/chroma`: "
    "`chromadb/utils/embedding_functions/huggingface_embedding_function.py`)",
)
def test_chroma(locked: Live, engine: FakeEngine) -> None:
    """Texts alone."""
    assert same(post(locked, {"inputs": TEXTS}), engine, "search_document", TEXTS)
