"""The frameworks that RAG backends are made with, as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import KEY, MODEL
from tests.fakes import FakeEngine, as_float32

shows = pytest.mark.shows
TEXTS = ["The sky is blue.", "Grass is green.", "Größe 語 🎉"]


def same(found: Any, engine: FakeEngine, prefix: str, texts: list[str], size: int = 768) -> bool:
    """Whether these are the vectors of the texts with that prefix."""
    expected = [engine.expected(f"{prefix}: {text}", size) for text in texts]
    return bool((as_float32(found) == np.array(expected)).all())


class TestLangChain:
    """Token arrays unless told otherwise."""

    PACKAGE = "langchain-openai"

    def embeddings(self, base_url: str, **options: Any) -> Any:
        """The class as its users make it."""
        from langchain_openai import OpenAIEmbeddings

        given: dict[str, Any] = {"base_url": base_url, "api_key": KEY, "model": MODEL}
        return OpenAIEmbeddings(**given | options)

    @shows(PACKAGE, "`OpenAIEmbeddings` with default settings: cl100k token arrays")
    def test_default(self, base_url: str, engine: FakeEngine) -> None:
        """The same vectors as the strings give."""
        embeddings = self.embeddings(base_url)
        assert same(embeddings.embed_documents(TEXTS), engine, "search_document", TEXTS)
        assert same([embeddings.embed_query(TEXTS[0])], engine, "search_document", TEXTS[:1])

    @shows(PACKAGE, "the same under an OpenAI model name, and in async")
    async def test_alias(self, base_url: str, engine: FakeEngine) -> None:
        """text-embedding-3-small is an alias of the default model."""
        embeddings = self.embeddings(base_url, model="text-embedding-3-small", dimensions=256)
        found = await embeddings.aembed_documents(TEXTS)
        assert same(found, engine, "search_document", TEXTS, 256)

    @shows(PACKAGE, "`check_embedding_ctx_length=False`: strings")
    def test_strings(self, base_url: str, engine: FakeEngine) -> None:
        """What LangChain's documentation recommends for other servers."""
        embeddings = self.embeddings(base_url, check_embedding_ctx_length=False)
        assert same(embeddings.embed_documents(TEXTS), engine, "search_document", TEXTS)

    @shows(PACKAGE, "queries by `model_kwargs`, or by the model's name")
    def test_queries(self, base_url: str, engine: FakeEngine) -> None:
        """A second instance for queries."""
        for options in (
            {"model_kwargs": {"extra_body": {"input_type": "query"}}},
            {"model": f"{MODEL}-query"},
        ):
            found = self.embeddings(base_url, **options).embed_query(TEXTS[0])
            assert same([found], engine, "search_query", TEXTS[:1])

    @shows(PACKAGE, "1,500 documents in batches, and an empty one among them")
    def test_many(self, base_url: str, engine: FakeEngine) -> None:
        """LangChain sends 1000 at once; for an empty text it asks for the vector of ''."""
        texts = [f"text {n}" for n in range(1500)]
        found = self.embeddings(base_url).embed_documents([*texts, ""])
        assert same(found[:1500], engine, "search_document", texts)
        assert len(found[1500]) == 768


class TestLlamaIndex:
    """Strings, always as a list."""

    PACKAGE = "llama-index-embeddings-openai"

    def embeddings(self, base_url: str, **options: Any) -> Any:
        """The class as its users make it for a model that OpenAI does not have."""
        from llama_index.embeddings.openai import OpenAIEmbedding

        make: Any = OpenAIEmbedding
        return make(**{"model_name": MODEL, "api_base": base_url, "api_key": KEY} | options)

    @shows(PACKAGE, "`OpenAIEmbedding(model_name=...)`: texts, batches, queries")
    def test_texts(self, base_url: str, engine: FakeEngine) -> None:
        """It reads vectors by their position."""
        embeddings = self.embeddings(base_url)
        found = embeddings.get_text_embedding_batch(TEXTS)
        assert same(found, engine, "search_document", TEXTS)
        found = embeddings.get_query_embedding(TEXTS[0])
        assert same([found], engine, "search_document", TEXTS[:1])

    @shows(PACKAGE, "`dimensions`, and `additional_kwargs` for queries")
    async def test_options(self, base_url: str, engine: FakeEngine) -> None:
        """Both reach the body."""
        query = {"extra_body": {"input_type": "query"}}
        embeddings = self.embeddings(base_url, dimensions=256, additional_kwargs=query)
        found = await embeddings.aget_query_embedding(TEXTS[0])
        assert same([found], engine, "search_query", TEXTS[:1], 256)


class TestHaystack:
    """Floats, by components."""

    PACKAGE = "haystack-ai"

    @shows(PACKAGE, "`OpenAITextEmbedder` and `OpenAIDocumentEmbedder`")
    def test_embedders(self, base_url: str, engine: FakeEngine) -> None:
        """A query and documents; usage comes along."""
        from haystack import Document
        from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
        from haystack.utils import Secret

        shared: dict[str, Any] = {"api_base_url": base_url, "api_key": Secret.from_token(KEY)}
        documents: Any = OpenAIDocumentEmbedder(model=MODEL, dimensions=256, **shared)
        answer = documents.run([Document(content=text) for text in TEXTS])
        found = [document.embedding for document in answer["documents"]]
        assert same(found, engine, "search_document", TEXTS, 256)
        assert answer["meta"]["usage"]["prompt_tokens"] > 0
        queries: Any = OpenAITextEmbedder(model=f"{MODEL}-query", **shared)
        assert same([queries.run(TEXTS[0])["embedding"]], engine, "search_query", TEXTS[:1])


class TestLiteLLM:
    """Leaves `encoding_format` away."""

    PACKAGE = "litellm"

    @shows(PACKAGE, '`embedding(model="openai/...")`, and in async')
    async def test_embedding(self, base_url: str, engine: FakeEngine) -> None:
        """Any further keyword goes into the body."""
        import litellm

        shared: dict[str, Any] = {"api_base": base_url, "api_key": KEY, "input": TEXTS}
        call: Any = litellm.embedding
        answer = call(model=f"openai/{MODEL}", **shared)
        found = [item["embedding"] for item in answer.data]
        assert same(found, engine, "search_document", TEXTS)
        # For models that are not OpenAI's, LiteLLM wants to be told that they know dimensions.
        shared |= {"dimensions": 256, "allowed_openai_params": ["dimensions"]}
        call = litellm.aembedding
        answer = await call(model=f"openai/{MODEL}", **shared, input_type="query")
        found = [item["embedding"] for item in answer.data]
        assert same(found, engine, "search_query", TEXTS, 256)
