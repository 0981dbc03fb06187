"""OpenAI's own Python client: sync, async, raw, its retries and its exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import openai
import pytest

from tests.clients.conftest import KEY, MODEL
from tests.contract.conftest import live_server, n_refused, wait_until
from tests.fakes import FakeEngine

PACKAGE = "openai"
shows = pytest.mark.shows
TEXTS = ["The sky is blue.", "Grass is green."]


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The client as its users make it."""
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


def documents(engine: FakeEngine, texts: list[str] = TEXTS) -> np.ndarray[Any, Any]:
    """What the server ought to give for texts that do not say what they are."""
    return np.array([engine.expected(f"search_document: {text}") for text in texts])


@shows(PACKAGE, "one text and lists, base64 by default")
def test_default(client: openai.OpenAI, engine: FakeEngine) -> None:
    """The client asks for base64 by itself, and decodes it."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert np.array_equal([item.embedding for item in answer.data], documents(engine))
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0
    one = client.embeddings.create(model=MODEL, input=TEXTS[0])
    assert np.array_equal(one.data[0].embedding, documents(engine)[0])


@shows(PACKAGE, '`encoding_format="float"`, the same values')
def test_float(client: openai.OpenAI, engine: FakeEngine) -> None:
    """The shortest decimals of the same float32."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    found = np.array([item.embedding for item in answer.data], np.float32)
    assert np.array_equal(found, documents(engine))


@shows(PACKAGE, "token arrays, flat and nested")
def test_tokens(client: openai.OpenAI, engine: FakeEngine) -> None:
    """Ids of cl100k_base are the text they stand for."""
    answer = client.embeddings.create(model=MODEL, input=[[9906, 1917], [791, 13180]])
    expected = documents(engine, ["Hello world", "The sky"])
    assert np.array_equal([item.embedding for item in answer.data], expected)
    answer = client.embeddings.create(model=MODEL, input=[9906, 1917])
    assert np.array_equal(answer.data[0].embedding, expected[0])


@shows(PACKAGE, "`dimensions`, `user`, OpenAI's model names")
def test_fields(client: openai.OpenAI, engine: FakeEngine) -> None:
    """An alias answers as the model it stands for."""
    answer = client.embeddings.create(
        model="text-embedding-3-small", input=TEXTS, dimensions=256, user="somebody"
    )
    assert answer.model == MODEL
    assert [len(item.embedding) for item in answer.data] == [256, 256]


@shows(PACKAGE, "our extensions by `extra_body` or the model's name")
def test_extensions(client: openai.OpenAI, engine: FakeEngine) -> None:
    """A query by either way."""
    expected = engine.expected(f"search_query: {TEXTS[0]}")
    said = client.embeddings.create(model=MODEL, input=TEXTS[0], extra_body={"input_type": "query"})
    named = client.embeddings.create(model=f"{MODEL}-query", input=TEXTS[0])
    for answer in (said, named):
        assert np.array_equal(answer.data[0].embedding, expected)
    bits = client.embeddings.create(
        model=MODEL,
        input=TEXTS[0],
        encoding_format="float",
        extra_body={"embedding_type": "ubinary"},
    )
    assert len(bits.data[0].embedding) == 768 // 8


@shows(PACKAGE, "raw responses and their headers")
def test_raw(client: openai.OpenAI) -> None:
    """Headers are there, and the parsed answer too."""
    raw = client.embeddings.with_raw_response.create(model=MODEL, input="a")
    assert raw.headers["x-matryo-fingerprint"].startswith(MODEL)
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().data[0].embedding
    assert (
        raw.headers["x-request-id"]
        == client.embeddings.create(
            model=MODEL, input="a", extra_headers={"x-request-id": raw.headers["x-request-id"]}
        )._request_id
    )


@shows(PACKAGE, "the async client, many calls at once")
async def test_async(base_url: str, engine: FakeEngine) -> None:
    """Twenty at once, each with its own answer."""
    import asyncio

    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
        texts = [f"text {n}" for n in range(20)]
        answers = await asyncio.gather(
            *(client.embeddings.create(model=MODEL, input=text) for text in texts)
        )
    found = [answer.data[0].embedding for answer in answers]
    assert np.array_equal(found, documents(engine, texts))


@shows(PACKAGE, "its exceptions, with code, param and request id")
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (openai.BadRequestError, {"input": []}),
        (openai.BadRequestError, {"input": ["a", ""]}),
        (openai.BadRequestError, {"input": "a", "dimensions": 0}),
        (openai.BadRequestError, {"input": [[100256]]}),
        (openai.NotFoundError, {"input": "a", "model": "gpt-4"}),
        (
            openai.AuthenticationError,
            {"input": "a", "extra_headers": {"authorization": "Bearer x"}},
        ),
    ],
)
def test_errors(
    client: openai.OpenAI, kind: type[openai.APIStatusError], call: dict[str, Any]
) -> None:
    """The class by status, the fields from OpenAI's error object."""
    given: dict[str, Any] = {"model": MODEL} | call
    with pytest.raises(kind) as caught:
        client.embeddings.create(**given)
    error = caught.value
    assert error.request_id
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}


@shows(PACKAGE, "lists and retrieves models")
def test_models(client: openai.OpenAI) -> None:
    """What is served, and each by id or alias."""
    assert [model.id for model in client.models.list()] == [MODEL, "all-minilm-l6-v2"]
    assert client.models.retrieve("nomic-ai/nomic-embed-text-v1.5").id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@shows(PACKAGE, "retries a 429 after `Retry-After`, and then succeeds")
def test_retries(engine: FakeEngine) -> None:
    """A full queue is no error for a client that may wait."""
    with live_server(engine, queue_tokens=20, workers=1) as live:
        engine.gate.clear()
        patient = openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=4)
        with patient, ThreadPoolExecutor(2) as threads:
            create = partial(patient.embeddings.create, model=MODEL, input="w " * 12)
            first = threads.submit(create)
            wait_until(lambda: live.application.state.context.service._scheduler.queued_tokens)
            hasty = patient.with_options(max_retries=0)
            with pytest.raises(openai.RateLimitError) as caught:
                hasty.embeddings.create(model=MODEL, input="w " * 12)
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            second = threads.submit(create)
            wait_until(lambda: n_refused(live) == 2)
            assert not second.done()
            engine.gate.set()
            assert first.result(10).data
            assert second.result(70).data
