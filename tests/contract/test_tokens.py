"""Arrays of token ids over HTTP, as LangChain sends text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from matryo.assembly import service as assembly
from matryo.store.encodings import find_table
from matryo.store.layout import Store
from tests.contract.conftest import client_of
from tests.fakes import MINILM, FakeEngine, as_float32

# "Hello world", "The sky is blue" in cl100k_base
HELLO, SKY = [9906, 1917], [791, 13180, 374, 6437]


async def post(client: httpx2.AsyncClient, status: int = 200, **body: Any) -> Any:
    """The response to a POST of a body."""
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors(answer: Any) -> list[Any]:
    """The vectors of an answer, in order."""
    return [as_float32(item["embedding"]) for item in answer["data"]]


async def test_arrays_are_the_texts(client: httpx2.AsyncClient) -> None:
    """Ids of cl100k_base give the vectors and usage of the strings that they encode."""
    options: list[dict[str, Any]] = [{}, {"input_type": "query"}, {"model": "all-minilm-l6-v2"}]
    for extra in (*options, {"dimensions": 64}):
        texts = await post(client, input=["Hello world", "The sky is blue"], **extra)
        arrays = await post(client, input=[HELLO, SKY], **extra)
        assert arrays == texts
        assert await post(client, input=HELLO, **extra) == await post(
            client, input="Hello world", **extra
        )


async def test_many_arrays_come_in_order(client: httpx2.AsyncClient, engine: FakeEngine) -> None:
    """2048 arrays are answered in order."""
    answer = await post(client, input=[HELLO, SKY] * 1024)
    expected = [
        engine.expected(f"search_document: {t}") for t in ("Hello world", "The sky is blue")
    ]
    assert len(answer["data"]) == 2048
    for place, vector in enumerate(vectors(answer)):
        assert np.array_equal(vector, expected[place % 2])


async def test_limits_are_the_models_own(client: httpx2.AsyncClient) -> None:
    """The limit applies to tokens after decoding, and the error names the input's index."""
    long = [1917] * 600  # " world"
    answer = await post(client, 400, input=[HELLO, long], model="all-minilm-l6-v2")
    assert "Invalid 'input[1]': maximum input length is 512 tokens" in answer["error"]["message"]
    answer = await post(client, input=[HELLO, long], model="all-minilm-l6-v2", truncate=True)
    assert len(answer["data"]) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[9906, 100256]], "Invalid 'input[0][1]': 100256 is not a token id"),
        ([9906, -1], "Invalid 'input[1]': -1 is not a token id"),
        ([[1], [1 << 62]], "Invalid 'input[1][0]'"),
        ([[1], []], "Invalid 'input[1]': empty array"),
    ],
)
async def test_bad_ids(client: httpx2.AsyncClient, value: object, message: str) -> None:
    """A wrong array is a 400 that names the input's index."""
    answer = await post(client, 400, input=value)
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["param"] == "input"


async def test_own_ids(engine: FakeEngine) -> None:
    """With MATRYO_TOKEN_INPUT=model, ids reach the model between prefix and special tokens."""
    async with client_of([engine, FakeEngine(MINILM)], token_input="model") as client:
        answer = await post(client, input=[[7, 8], [9]])
        expected = engine.from_ids([7, 8], "search_document: ").ids
        assert np.array_equal(vectors(answer)[0], engine.vector(expected, 768))
        assert answer["usage"]["prompt_tokens"] == len(expected) + len(expected) - 1
        refused = await post(client, 400, input=[[7], [engine.vocab_size]])
        assert "Invalid 'input[1][0]'" in refused["error"]["message"]
        assert f"has 0 to {engine.vocab_size - 1}" in refused["error"]["message"]


async def test_no_vocabulary(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the encoding, strings are served, and arrays are a 400 that names the remedy."""
    monkeypatch.setattr(assembly, "find_table", lambda _store: None)
    async with client_of(engine) as client:
        answer = await post(client, 400, input=[HELLO])
        assert "matryo pull cl100k_base" in answer["error"]["message"]
        assert answer["error"]["code"] == "tokens_not_supported"
        await post(client, input="Hello world")


def test_table_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoding file with another content is not used."""
    found = find_table(Store(tmp_path))
    assert found
    monkeypatch.setattr("sys.path", [])
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    assert find_table(Store(tmp_path)) is None
    place = Store(tmp_path).encodings / found.name
    place.parent.mkdir()
    place.write_bytes(found.read_bytes()[:-1])
    assert find_table(Store(tmp_path)) is None
    place.write_bytes(found.read_bytes())
    assert find_table(Store(tmp_path)) == place
