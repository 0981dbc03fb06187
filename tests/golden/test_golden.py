"""Real weights give the published values; `make golden` downloads the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from matryo.assembly.models import load_engines
from matryo.build.check import TEXTS
from matryo.catalog.golden import CosineCheck, read_golden
from matryo.commands import verify
from matryo.core.environment import load_settings
from matryo.engine import Engine
from matryo.store.encodings import find_table
from matryo.store.layout import Store
from tests.clients.test_examples import rag
from tests.contract.conftest import client_of, live_server, openai_of
from tests.fakes import MINILM, MODELS

pytestmark = pytest.mark.golden


@pytest.fixture
def engine() -> Engine:
    """An engine with MiniLM's real weights, loaded for each test, as applications close engines."""
    (engine,) = load_engines(load_settings(None, model=MINILM.id))
    return engine


async def embed(client: httpx2.AsyncClient, texts: Sequence[str], input_type: str) -> Any:
    """Vectors of the texts, through the official client."""
    answer = await openai_of(client).embeddings.create(
        model=MINILM.id, input=list(texts), extra_body={"input_type": input_type}
    )
    return np.array([item.embedding for item in answer.data])


async def test_published_cosines(engine: Engine) -> None:
    """The service gives the published cosines."""
    checks = [c for c in read_golden(MODELS / MINILM.id).checks if isinstance(c, CosineCheck)]
    assert checks
    async with client_of(engine) as client:
        for check in checks:
            rows = await embed(client, check.rows, check.row_type)
            columns = await embed(client, check.columns, check.column_type)
            expected = np.array(check.expected)
            allowed = np.maximum(check.abs_tolerance, check.rel_tolerance * np.abs(expected))
            assert (np.abs(rows @ columns.T - expected) <= allowed).all(), check.source


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    """`matryo verify` runs every check, and all pass."""
    assert verify.run(load_settings(None, model=MINILM.id), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["checkpoint_verified"]
    assert len(facts["checks"]) > len(read_golden(MODELS / MINILM.id).checks)
    assert all(check["passed"] for check in facts["checks"])


def test_alone_as_in_any_batch(engine: Engine) -> None:
    """Texts of 2 to 512 tokens have vectors with the same bits alone and in a batch."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1000, 30000, n) for n in [*range(2, 40), 64, 100, 127, 200, 333, 512]]
    alone = [engine.embed([text], [384]).embeddings[0] for text in texts]
    for _ in range(4):
        order = rng.permutation(len(texts))[:16]
        together = engine.embed([texts[i] for i in order], [384] * 16).embeddings
        assert all(
            np.array_equal(vector, alone[i]) for vector, i in zip(together, order, strict=True)
        )


@pytest.mark.parametrize(
    ("question", "source"),
    [
        ("My compost stinks, what can I do?", "garden.md] Compost"),
        ("How much room do I save with binary vectors?", "serving.md] Saving room"),
        ("How hot should the oven be for a loaf?", "cooking.md] Bread"),
    ],
)
def test_rag_example(engine: Engine, question: str, source: str) -> None:
    """The example finds the right passages, with 256 floats and with signs."""
    with live_server(engine) as live:
        found = rag(live, question, MINILM.id)
    for lines in found.values():
        assert source in lines[0]


def test_langchain_sends_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain's default client gets the vectors of the strings."""
    from langchain_openai import OpenAIEmbeddings

    table = find_table(Store(Path("none")))
    assert table
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(table.parent))
    texts = [TEXTS[n % len(TEXTS)] * (1 + n) for n in range(20)]
    make: Any = OpenAIEmbeddings
    with live_server(engine) as live:
        shared = {"base_url": f"{live.url}/v1", "api_key": "none", "model": MINILM.id}
        tokens = np.array(make(**shared).embed_documents(texts))
        strings = np.array(make(**shared, check_embedding_ctx_length=False).embed_documents(texts))
    assert (tokens * strings).sum(1).min() > 0.99999
