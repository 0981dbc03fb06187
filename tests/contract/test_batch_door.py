"""Files and batches over HTTP: OpenAI's objects, pages and errors, by the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI

from matryo.batch.objects import Counts, LineError
from matryo.core.errors import MatryoError, StorageFull, StorageQuotaReached, StorageUnavailable
from tests.batch_storage import CHUNK, NOW, MemoryStorage
from tests.contract.conftest import entered_application, openai_of
from tests.contract.test_keys import line
from tests.fakes import FakeEngine

LINES = b'{"custom_id": "1", "method": "POST"}\n' * 100
BATCH_FIELDS = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status",
    "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at",
    "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
    "request_counts", "usage", "metadata",
}  # fmt: skip


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """The storage of every application that a test makes with `batch=True`."""
    storage = MemoryStorage()
    monkeypatch.setattr("matryo.main.open_batch", lambda _settings: storage)
    return storage


@pytest.fixture
async def served(
    engine: FakeEngine, storage: MemoryStorage
) -> AsyncIterator[tuple[FastAPI, httpx2.AsyncClient]]:
    """An application with a Batch API, and its client."""
    async with entered_application(engine, batch=True, batch_max_file_bytes=100_000) as (
        application,
        client,
    ):
        yield application, client


@pytest.fixture
def client(served: tuple[FastAPI, httpx2.AsyncClient]) -> httpx2.AsyncClient:
    """A client of HTTP."""
    return served[1]


@pytest.fixture
def sdk(client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    """The official client."""
    return openai_of(client)


async def upload(client: httpx2.AsyncClient, content: bytes = LINES, **options: Any) -> Any:
    """The answer to an upload."""
    files = {"file": ("in.jsonl", content)}
    return await client.post("/v1/files", files=files, data={"purpose": "batch"}, **options)


def error_of(answer: httpx2.Response) -> tuple[int, str | None, str | None]:
    """Status, param and code of an error, which must be OpenAI's whole object."""
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert answer.headers["x-request-id"]
    return answer.status_code, error["param"], error["code"]


async def test_files(sdk: openai.AsyncOpenAI, storage: MemoryStorage) -> None:
    """The official client uploads, looks, lists, downloads and deletes."""
    file = await sdk.files.create(file=("in.jsonl", LINES), purpose="batch")
    assert file.to_dict() == {
        "id": file.id,
        "object": "file",
        "bytes": len(LINES),
        "created_at": NOW,
        "expires_at": NOW + 30 * 86_400,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert await sdk.files.retrieve(file.id) == file
    assert [one async for one in sdk.files.list()] == [file]
    assert (await sdk.files.content(file.id)).content == LINES
    async with sdk.files.with_streaming_response.content(file.id) as answer:
        assert b"".join([piece async for piece in answer.iter_bytes()]) == LINES
    deleted = await sdk.files.delete(file.id)
    assert deleted.to_dict() == {"id": file.id, "object": "file", "deleted": True}
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.files.retrieve(file.id)
    assert caught.value.param == "id"
    assert caught.value.message.endswith(f"No such File object: {file.id}")


async def test_a_life(sdk: openai.AsyncOpenAI, client: httpx2.AsyncClient) -> None:
    """`expires_after` is read, by whatever place it has in the form."""
    life: Any = {"anchor": "created_at", "seconds": 3600}
    file = await sdk.files.create(file=LINES, purpose="batch", expires_after=life)
    assert file.expires_at == file.created_at - file.created_at % 1000 + 3600
    assert file.filename == "upload"
    late = [
        ("file", ("b.jsonl", LINES)),
        ("expires_after[seconds]", (None, "7200")),
        ("expires_after[anchor]", (None, "created_at")),
        ("purpose", (None, "batch")),
    ]
    answer = (await client.post("/v1/files", files=late)).json()
    assert answer["expires_at"] == NOW + 7200


async def test_batches(sdk: openai.AsyncOpenAI, storage: MemoryStorage) -> None:
    """The official client makes, looks, lists and cancels."""
    file = await sdk.files.create(file=("in.jsonl", LINES), purpose="batch")
    life: Any = {"anchor": "created_at", "seconds": 3600}
    batch = await sdk.batches.create(
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata={"job": "night"},
        output_expires_after=life,
    )
    assert batch.to_dict() == {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/embeddings",
        "model": None,
        "errors": None,
        "input_file_id": file.id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": NOW,
        "in_progress_at": None,
        "expires_at": NOW + 86_400,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "metadata": {"job": "night"},
    }
    assert storage.jobs[batch.id].output_expires_after_s == 3600
    assert await sdk.batches.retrieve(batch.id) == batch
    assert [one async for one in sdk.batches.list()] == [batch]
    cancelled = await sdk.batches.cancel(batch.id)
    assert (cancelled.status, cancelled.cancelling_at) == ("cancelling", NOW)


async def test_no_pin(sdk: openai.AsyncOpenAI) -> None:
    """A batch that is to be held to a fingerprint is refused, since no line of it would be."""
    pin = {"x-matryo-expect-fingerprint": "all-minilm-l6-v2/int8"}
    with pytest.raises(openai.BadRequestError, match="cannot be held to a fingerprint"):
        await sdk.batches.create(
            input_file_id="file-1",
            endpoint="/v1/embeddings",
            completion_window="24h",
            extra_headers=pin,
        )


async def test_an_ended_batch(sdk: openai.AsyncOpenAI, storage: MemoryStorage) -> None:
    """Faults of the input, counts, tokens and files of a batch are there for the client."""
    file = await sdk.files.create(file=LINES, purpose="batch")
    batch = await sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    faults = (LineError("invalid_json_line", "No JSON.", 3), LineError("empty_file", "Empty."))
    storage.jobs[batch.id] = replace(
        storage.jobs[batch.id],
        status="failed",
        errors=faults,
        counts=Counts(5, 3, 2),
        n_tokens=77,
        failed_at=NOW + 9,
    )
    found = (await sdk.batches.retrieve(batch.id)).to_dict()
    assert found["errors"] == {
        "object": "list",
        "data": [
            {"code": "invalid_json_line", "message": "No JSON.", "param": None, "line": 3},
            {"code": "empty_file", "message": "Empty.", "param": None, "line": None},
        ],
    }
    assert found["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
    usage: Any = found["usage"]
    assert (usage["input_tokens"], usage["total_tokens"]) == (77, 77)
    assert found["failed_at"] == NOW + 9
    with pytest.raises(openai.ConflictError) as caught:
        await sdk.with_options(max_retries=5).batches.cancel(batch.id)
    assert "Cannot cancel a batch with status 'failed'" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_pages(sdk: openai.AsyncOpenAI, client: httpx2.AsyncClient) -> None:
    """Lists come in pages, and the client walks them."""
    ids = [(await sdk.files.create(file=LINES, purpose="batch")).id for _ in range(5)]
    newest = ids[::-1]
    assert [one.id async for one in sdk.files.list(limit=2)] == newest
    assert [one.id async for one in sdk.files.list(limit=2, order="asc")] == ids
    page = (await client.get("/v1/files", params={"limit": 2, "after": newest[1]})).json()
    assert {name: page[name] for name in page if name != "data"} == {
        "object": "list",
        "first_id": newest[2],
        "last_id": newest[3],
        "has_more": True,
    }
    assert (await client.get("/v1/files", params={"purpose": "vision"})).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert [one.id async for one in sdk.files.list(purpose="batch")] == newest
    assert [one async for one in sdk.files.list(purpose="batch_output")] == []
    made = [
        await sdk.batches.create(
            input_file_id=ids[0], endpoint="/v1/embeddings", completion_window="24h"
        )
        for _ in range(3)
    ]
    assert [one async for one in sdk.batches.list(limit=1)] == made[::-1]


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"limit": "0"}, "limit", "integer_below_min_value"),
        ({"limit": "10001"}, "limit", "integer_above_max_value"),
        ({"limit": "9" * 5000}, "limit", "integer_above_max_value"),
        ({"limit": ""}, "limit", "invalid_type"),
        ({"limit": "many"}, "limit", "invalid_type"),
        ({"limit": "²"}, "limit", "invalid_type"),
        ({"order": ""}, "order", "invalid_value"),
        ({"order": "up"}, "order", "invalid_value"),
    ],
)
async def test_bad_queries(
    client: httpx2.AsyncClient, query: dict[str, str], param: str, code: str
) -> None:
    """A query that asks for nothing possible is a 400 that names it."""
    assert error_of(await client.get("/v1/files", params=query)) == (400, param, code)
    if "limit" in query:
        assert error_of(await client.get("/v1/batches", params=query)) == (400, param, code)


@pytest.mark.parametrize("path", ["files", "batches"])
async def test_unknown_cursor(client: httpx2.AsyncClient, path: str) -> None:
    """A page cannot follow what the caller does not have."""
    for after in ("nothing", "a\0b", "é", "x" * 1000):
        status, *_ = error_of(await client.get(f"/v1/{path}", params={"after": after}))
        assert status == 404


GOOD = {"input_file_id": "file-0", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"input_file_id": None}, 400, "input_file_id", "invalid_type"),
        ({"input_file_id": "wrong"}, 400, "input_file_id", "invalid_value"),
        ({"input_file_id": "file-none"}, 404, "input_file_id", None),
        ({"input_file_id": "file-\0"}, 404, "input_file_id", None),
        ({"endpoint": "/v1/completions"}, 400, "endpoint", "invalid_value"),
        ({"endpoint": 1}, 400, "endpoint", "invalid_type"),
        ({"completion_window": "1h"}, 400, "completion_window", "invalid_value"),
        ({"metadata": []}, 400, "metadata", "invalid_type"),
        ({"metadata": {"a": 1}}, 400, "metadata.a", "invalid_type"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata.a", "string_above_max_length"),
        ({"metadata": {"a": "x\0"}}, 400, "metadata.a", "invalid_value"),
        (
            {"metadata": {str(n): "" for n in range(17)}},
            400, "metadata", "object_above_max_properties",
        ),
        ({"output_expires_after": 1}, 400, "output_expires_after", "invalid_type"),
        (
            {"output_expires_after": {"anchor": "created_at"}},
            400, "output_expires_after.seconds", "missing_required_parameter",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            400, "output_expires_after.seconds", "integer_below_min_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            400, "output_expires_after.seconds", "integer_above_max_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": "3600"}},
            400, "output_expires_after.seconds", "invalid_type",
        ),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            400, "output_expires_after.anchor", "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3600, "x": 1}},
            400, None, "unsupported_parameter",
        ),
    ],
)  # fmt: skip
async def test_bad_batches(
    client: httpx2.AsyncClient, change: dict[str, Any], status: int, param: str, code: str
) -> None:
    """A batch that cannot be made is refused, with the field that is wrong."""
    await upload(client)
    assert error_of(await client.post("/v1/batches", json=GOOD | change)) == (status, param, code)


async def test_metadata_keys(client: httpx2.AsyncClient) -> None:
    """A key over 64 characters is refused, and one of 64 is not."""
    await upload(client)
    answer = await client.post("/v1/batches", json=GOOD | {"metadata": {"k" * 65: ""}})
    assert error_of(answer)[2] == "string_above_max_length"
    answer = await client.post("/v1/batches", json=GOOD | {"metadata": {"k" * 64: "v" * 512}})
    assert answer.status_code == 200
    assert set(answer.json()) == BATCH_FIELDS


@pytest.mark.parametrize("name", GOOD)
async def test_missing_fields(client: httpx2.AsyncClient, name: str) -> None:
    """A field that must be there is named."""
    body = {key: value for key, value in GOOD.items() if key != name}
    answer = await client.post("/v1/batches", json=body)
    assert error_of(answer) == (400, name, "missing_required_parameter")


async def test_bodies_of_batches(client: httpx2.AsyncClient) -> None:
    """What is no JSON object, of another type or too large is refused."""
    for body in (b"", b"[]", b"{", b"\xff", json.dumps("a" * 100_000).encode()):
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/batches", content=body, headers=headers)
        assert error_of(answer)[0] == 400
    answer = await client.post("/v1/batches", data=GOOD)
    assert error_of(answer) == (415, None, "unsupported_content_type")


async def test_unknown_fields(engine: FakeEngine, storage: MemoryStorage) -> None:
    """Fields that nobody knows are ignored with a warning, or refused if the operator says so."""
    for unknown, statuses in (("warn", (200, 200)), ("refuse", (400, 400))):
        async with entered_application(engine, batch=True, unknown_fields=unknown) as (_, client):
            storage.uploads.clear()
            form = {"purpose": "batch", "custom_llm_provider": "openai"}
            one = await client.post("/v1/files", data=form, files={"file": ("a", LINES)})
            await upload(client)
            two = await client.post("/v1/batches", json=GOOD | {"priority": 1, "none": None})
        assert (one.status_code, two.status_code) == statuses
        if unknown == "warn":
            assert one.headers["x-matryo-warning"] == "ignored: custom_llm_provider"
            assert two.headers["x-matryo-warning"] == "ignored: priority"
        else:
            assert storage.n_aborted == 1


RANGES = {
    "bytes=0-9": (206, 0, 10),
    "bytes=10-": (206, 10, 3700),
    "bytes=-5": (206, 3695, 3700),
    "bytes=-9999999": (206, 0, 3700),
    "bytes=3699-99999": (206, 3699, 3700),
    "Bytes = 1 - 2": (206, 1, 3),
    "bytes=5-4": (200, 0, 3700),
    "bytes=0-1,3-4": (200, 0, 3700),
    "lines=0-1": (200, 0, 3700),
    "bytes=-": (200, 0, 3700),
    "nonsense": (200, 0, 3700),
}


@pytest.mark.parametrize("asked", RANGES)
async def test_ranges(client: httpx2.AsyncClient, asked: str) -> None:
    """A part of a file, or the whole file where the header says nothing possible."""
    path = f"/v1/files/{(await upload(client)).json()['id']}/content"
    status, start, end = RANGES[asked]
    for method in ("GET", "HEAD"):
        answer = await client.request(method, path, headers={"range": asked})
        assert answer.status_code == status
        assert answer.content == (LINES[start:end] if method == "GET" else b"")
        assert answer.headers["content-length"] == str(end - start)
        assert answer.headers["accept-ranges"] == "bytes"
        expected = f"bytes {start}-{end - 1}/3700" if status == 206 else None
        assert answer.headers.get("content-range") == expected


async def test_ranges_out_of_bounds(client: httpx2.AsyncClient) -> None:
    """A part behind the end is a 416 that says how long the file is."""
    path = f"/v1/files/{(await upload(client)).json()['id']}/content"
    for asked in ("bytes=3700-", "bytes=9999-10000", "bytes=-0"):
        answer = await client.get(path, headers={"range": asked})
        assert error_of(answer) == (416, None, "range_not_satisfiable")
        assert answer.headers["content-range"] == "bytes */3700"


async def test_resumed_downloads(client: httpx2.AsyncClient) -> None:
    """`If-Range` gives the rest of the same file, and the whole of another one."""
    path = f"/v1/files/{(await upload(client)).json()['id']}/content"
    etag = (await client.head(path)).headers["etag"]
    rest = await client.get(path, headers={"range": "bytes=3690-", "if-range": etag})
    assert (rest.status_code, rest.content) == (206, LINES[3690:])
    whole = await client.get(path, headers={"range": "bytes=3690-", "if-range": '"other"'})
    assert (whole.status_code, whole.content) == (200, LINES)


async def test_headers_of_downloads(client: httpx2.AsyncClient) -> None:
    """A download has the caller's name for the file, whatever characters the name has."""
    files = {"file": ('wörter "1".jsonl', LINES)}
    file = (await client.post("/v1/files", files=files, data={"purpose": "batch"})).json()
    answer = await client.get(f"/v1/files/{file['id']}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    shown = answer.headers["content-disposition"]
    assert shown.startswith('attachment; filename="w_rter ')
    assert "filename*=UTF-8''w%C3%B6rter" in shown


async def test_an_empty_file(client: httpx2.AsyncClient) -> None:
    """A file without a byte can be uploaded and downloaded; its batch says what is wrong."""
    file = (await upload(client, b"")).json()
    assert file["bytes"] == 0
    answer = await client.get(f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "files/{}"), ("DELETE", "files/{}"), ("GET", "files/{}/content"),
        ("GET", "batches/{}"), ("POST", "batches/{}/cancel"),
    ],
)  # fmt: skip
async def test_unknown_ids(client: httpx2.AsyncClient, method: str, path: str) -> None:
    """An id that nobody has is a 404, whatever characters it has."""
    for found in ("file-none", "batch_none", "%00", "%F0%9F%8E%89", "a" * 2000, "..%2F..%2Fetc"):
        answer = await client.request(method, f"/v1/{path.format(found)}")
        assert error_of(answer)[0] == 404
        assert len(answer.json()["error"]["message"]) < 300


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "files"), ("DELETE", "files"), ("POST", "files/x"), ("DELETE", "batches/x"),
     ("GET", "batches/x/cancel"), ("POST", "files/x/content")],
)  # fmt: skip
async def test_methods(client: httpx2.AsyncClient, method: str, path: str) -> None:
    """A method that a route does not have is a 405 that names every method of the path."""
    answer = await client.request(method, f"/v1/{path}")
    assert error_of(answer) == (405, None, "method_not_supported")
    allowed = {
        "files": "GET, HEAD, POST",
        "files/x": "DELETE, GET, HEAD",
        "batches/x": "GET, HEAD",
        "batches/x/cancel": "POST",
        "files/x/content": "GET, HEAD",
    }
    assert answer.headers["allow"] == allowed[path]


async def test_without_v1(client: httpx2.AsyncClient) -> None:
    """Base URLs without `/v1` work."""
    files = {"file": ("a.jsonl", LINES)}
    file = (await client.post("/files", files=files, data={"purpose": "batch"})).json()
    assert (await client.get(f"/files/{file['id']}/content")).content == LINES
    batch = await client.post("/batches", json=GOOD)
    assert batch.status_code == 200
    assert (await client.post(f"/batches/{batch.json()['id']}/cancel")).status_code == 200
    assert (await client.get("/batches")).json()["data"][0]["status"] == "cancelling"
    assert (await client.delete(f"/files/{file['id']}")).json()["deleted"] is True


async def test_callers(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller sees its own files and batches alone, and needs a key."""
    async with entered_application(
        engine, batch=True, keys=f"{line('one')}\n{line('two', ', weight = 3')}"
    ) as (_, client):
        assert error_of(await client.get("/v1/files"))[0] == 401
        assert error_of(await upload(client))[0] == 401
        assert not storage.uploads
        one, two = (openai_of(client, api_key=f"sk-{name}") for name in ("one", "two"))
        file = await one.files.create(file=LINES, purpose="batch")
        batch = await one.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        assert [one async for one in two.files.list()] == []
        assert [one async for one in two.batches.list()] == []
        calls: list[Any] = [
            two.files.retrieve(file.id),
            two.files.content(file.id),
            two.files.delete(file.id),
            two.files.list(after=file.id),
            two.batches.create(
                input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
            ),
            two.batches.retrieve(batch.id),
            two.batches.cancel(batch.id),
            two.batches.list(after=batch.id),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                await call
        mine = await two.files.create(file=LINES, purpose="batch")
        made = await two.batches.create(
            input_file_id=mine.id, endpoint="/v1/embeddings", completion_window="24h"
        )
    assert (storage.jobs[made.id].owner, storage.jobs[made.id].caller_weight) == ("two", 3)


async def test_request_limits(engine: FakeEngine, storage: MemoryStorage) -> None:
    """Uploads and batches are requests of the key; looks and downloads are free."""
    keys = line("a", ", requests_per_minute = 2")
    headers = {"authorization": "Bearer sk-a"}
    async with entered_application(engine, batch=True, keys=keys) as (_, client):
        file = await upload(client, headers=headers)
        assert file.headers["x-ratelimit-remaining-requests"] == "1"
        await client.post("/v1/batches", json=GOOD, headers=headers)
        for _ in range(5):
            assert (await client.get("/v1/files", headers=headers)).status_code == 200
        answer = await client.post("/v1/batches", json=GOOD, headers=headers)
        assert error_of(answer) == (429, None, "rate_limit_exceeded")
        assert answer.headers["retry-after"]
    assert len(storage.jobs) == 1


QUOTA = StorageQuotaReached(what="files", key="a", limit=1, used=1, requested=1)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (QUOTA, 429, "insufficient_quota", "false"),
        (StorageFull(), 507, None, "false"),
        (StorageUnavailable(), 503, None, None),
    ],
)
async def test_storage_faults(
    client: httpx2.AsyncClient,
    storage: MemoryStorage,
    error: MatryoError,
    status: int,
    code: str | None,
    retry: str | None,
) -> None:
    """A quota, a full disk and a database that does not answer have errors of OpenAI's shape."""
    file = (await upload(client)).json()
    storage.error = error
    answers = [await upload(client), await client.post("/v1/batches", json=GOOD)]
    answers += [await client.get("/v1/files"), await client.get(f"/v1/files/{file['id']}/content")]
    for answer in answers:
        assert error_of(answer) == (status, None, code)
        assert answer.headers.get("x-should-retry") == retry
    if retry is None:
        assert answers[0].headers["retry-after"] == "5"


async def test_a_full_disk_midway(client: httpx2.AsyncClient, storage: MemoryStorage) -> None:
    """An upload that finds the disk full is refused, and leaves nothing."""
    writes = 0

    def fail() -> None:
        nonlocal writes
        writes += 1
        if writes > 1:
            raise StorageFull

    storage.fail = fail
    assert error_of(await upload(client))[0] == 507
    assert storage.n_aborted == 1
    assert not storage.kept


async def test_the_largest_file(client: httpx2.AsyncClient, storage: MemoryStorage) -> None:
    """A file of as many bytes as allowed is taken, a larger one is a 413 and leaves nothing."""
    storage.max_file_bytes = 100_000
    assert (await upload(client, b"x" * 100_000)).json()["bytes"] == 100_000
    answer = await upload(client, b"x" * 100_001)
    assert error_of(answer) == (413, "file", "file_too_large")
    assert "MATRYO_BATCH_MAX_FILE_BYTES" in answer.json()["error"]["message"]
    assert storage.n_aborted == 1
    assert len(storage.kept) == 1
    n_uploads = len(storage.uploads)
    assert error_of(await upload(client, b"x" * 200_000))[0] == 413
    assert len(storage.uploads) == n_uploads, "its Content-Length was known before"


async def test_off(engine: FakeEngine) -> None:
    """Without the setting every route is a 404 that names the setting, and none is described."""
    async with entered_application(engine, api_keys="sk-a") as (_, client):
        assert error_of(await client.get("/v1/files"))[0] == 401
        client.headers["authorization"] = "Bearer sk-a"
        for method, path in (
            ("GET", "files"), ("HEAD", "files"), ("POST", "files"), ("GET", "files/a"),
            ("DELETE", "files/a"), ("GET", "files/a/content"), ("POST", "batches"),
            ("GET", "batches"), ("GET", "batches/a"), ("POST", "batches/a/cancel"),
        ):  # fmt: skip
            for prefix in ("/v1/", "/"):
                answer = await client.request(method, prefix + path)
                assert answer.status_code == 404
                if method != "HEAD":
                    assert error_of(answer) == (404, None, "batch_off")
                    assert "MATRYO_BATCH=true" in answer.json()["error"]["message"]
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if "file" in path or "batch" in path]


async def test_counted_by_route(
    served: tuple[FastAPI, httpx2.AsyncClient], storage: MemoryStorage
) -> None:
    """Requests are counted by their route, never by an id."""
    application, client = served
    file = (await upload(client)).json()
    await client.get(f"/v1/files/{file['id']}/content")
    await client.get("/v1/files/none")
    registry = application.state.context.metrics.registry

    def count(route: str, status: str) -> float | None:
        labels = {"door": "batch", "route": route, "model": "", "status": status}
        return registry.get_sample_value("matryo_requests_total", labels)

    assert count("/v1/files", "200") == 1
    assert count("/v1/files/{file_id}/content", "200") == 1
    assert count("/v1/files/{file_id}", "404") == 1


async def test_a_download_in_chunks(client: httpx2.AsyncClient, storage: MemoryStorage) -> None:
    """A file of several chunks arrives whole."""
    content = bytes(range(256)) * 40
    assert len(content) > 5 * CHUNK
    file = (await upload(client, content)).json()
    assert (await client.get(f"/v1/files/{file['id']}/content")).content == content
    assert storage.n_closed == 0
