"""OpenAI's own Python client: sync, async, raw, its retries and its exceptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai.types import Batch

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


REQUESTS = b"".join(
    b'{"custom_id": "%d", "method": "POST", "url": "/v1/embeddings", "body": {"input": "%d"}}\n'
    % (n, n)
    for n in range(3)
)


@shows(PACKAGE, "`files`: create, list, retrieve, content, delete")
def test_files(batch_url: str, tmp_path: Path) -> None:
    """A file from the disk comes back byte for byte, and is gone once it is deleted."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(REQUESTS)
    with openai.OpenAI(base_url=batch_url, api_key=KEY, max_retries=0) as client:
        file = client.files.create(file=path, purpose="batch")
        assert (file.bytes, file.filename, file.status) == (len(REQUESTS), path.name, "processed")
        assert client.files.wait_for_processing(file.id) == client.files.retrieve(file.id) == file
        other = client.files.create(
            file=("b.jsonl", REQUESTS[:10]),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert other.expires_at == other.created_at + 7200
        assert [one.id for one in client.files.list(limit=1, order="asc")] == [file.id, other.id]
        assert client.files.content(file.id).read() == REQUESTS
        client.files.content(file.id).write_to_file(tmp_path / "back.jsonl")
        assert (tmp_path / "back.jsonl").read_bytes() == REQUESTS
        part = client.files.content(file.id, extra_headers={"range": "bytes=10-19"})
        assert part.read() == REQUESTS[10:20]
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=REQUESTS, purpose="fine-tune")
        assert (caught.value.param, caught.value.code) == ("purpose", "invalid_value")


@shows(PACKAGE, "`batches`: create, retrieve, list, cancel")
def test_batches(batch_url: str) -> None:
    """A batch of an uploaded file can be made, looked at and cancelled."""
    with openai.OpenAI(base_url=batch_url, api_key=KEY, max_retries=0) as client:
        file = client.files.create(file=("requests.jsonl", REQUESTS), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            metadata={"job": "night"},
        )
        assert batch.metadata == {"job": "night"}
        assert batch.usage
        assert batch.usage.total_tokens == 0
        assert client.batches.retrieve(batch.id).id == batch.id
        assert [one.id for one in client.batches.list(limit=1)] == [batch.id]
        with pytest.raises(openai.NotFoundError):
            client.batches.create(
                input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h"
            )
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_none")
        other = client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        try:
            status = client.batches.cancel(other.id).status
        except openai.ConflictError:  # the batch was done first
            status = client.batches.retrieve(other.id).status
        assert status in {"cancelling", "cancelled", "completed"}


@shows(PACKAGE, "a batch from its file to its results, the same vectors as `embeddings.create`")
def test_a_whole_batch(batch_url: str) -> None:
    """Each line has the body that the route answers, and a line that fails has its error."""
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/embeddings", "body": body}
        for n, body in enumerate(
            [
                {"model": MODEL, "input": "The sky is blue."},
                {"model": MODEL, "input": ["a", "b"], "encoding_format": "float"},
                {"model": MODEL, "input": []},
                {"model": MODEL, "input": "c", "dimensions": 64, "encoding_format": "base64"},
            ]
        )
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    with openai.OpenAI(base_url=batch_url, api_key=KEY, max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )

        def state() -> Batch:
            return client.batches.retrieve(batch.id)

        wait_until(lambda: state().status == "completed", 30)
        batch = state()
        counts, usage = batch.request_counts, batch.usage
        assert counts
        assert (counts.total, counts.completed, counts.failed) == (4, 3, 1)
        assert batch.model == MODEL
        assert batch.output_file_id
        assert batch.error_file_id
        answers = {
            line["custom_id"]: line["response"]
            for one in (batch.output_file_id, batch.error_file_id)
            for line in map(json.loads, client.files.content(one).text.splitlines())
        }
        n_tokens = 0
        for line in lines:
            expected = httpx2.post(
                f"{batch_url}/embeddings",
                json=line["body"],
                headers={"authorization": f"Bearer {KEY}"},
            )
            answer = answers.pop(line["custom_id"])
            assert answer["status_code"] == expected.status_code
            assert answer["body"] == expected.json()
            n_tokens += expected.json().get("usage", {}).get("total_tokens", 0)
        assert not answers
        assert usage
        assert usage.total_tokens == n_tokens
        kept = [one.purpose for one in client.files.list(order="asc")]
        assert kept == ["batch", "batch_output", "batch_output"]


@shows(PACKAGE, "`AsyncOpenAI`: uploads and streamed downloads")
async def test_async_files(batch_url: str) -> None:
    """A file goes up and comes down without being held in memory by either side."""
    async with openai.AsyncOpenAI(base_url=batch_url, api_key=KEY, max_retries=0) as client:
        file = await client.files.create(file=("a.jsonl", REQUESTS * 1000), purpose="batch")
        async with client.files.with_streaming_response.content(file.id) as answer:
            assert b"".join([one async for one in answer.iter_bytes(1000)]) == REQUESTS * 1000
