"""Clients of text-embeddings-inference, as they come."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from tests.contract.conftest import live_server
from tests.fakes import FakeEngine, as_float32

shows = pytest.mark.shows
PACKAGE = "huggingface_hub"
TEXTS = ["The sky is blue.", "Größe 語 🎉"]


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[InferenceClient]:
    """Hugging Face's client for a server with a key."""
    with live_server(engine, api_keys="hf_test") as live:
        yield InferenceClient(live.url, token="hf_test")


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
