"""Uploads and downloads on real sockets: slow and hanging callers, bounds, and a server that stops."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from matryo.batch.objects import File
from matryo.core.errors import StorageUnavailable
from matryo.http.openai.files import _DOWNLOAD_BYTES, _UPLOAD_BYTES
from tests.batch_storage import CHUNK, MemoryStorage
from tests.contract.conftest import Live, live_server, wait_until
from tests.fakes import FakeEngine

MIB = 1 << 20
HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
)
TAIL = b"\r\n--b--\r\n"


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStorage]:
    """The storage of every server that a test starts; its gate is open in the end."""
    storage = MemoryStorage(max_file_bytes=100 * MIB)
    monkeypatch.setattr("matryo.main.open_batch", lambda _settings: storage)
    yield storage
    storage.gate.set()


@contextmanager
def serving(engine: FakeEngine, **changes: Any) -> Generator[Live]:
    """A server with a Batch API."""
    with live_server(engine, batch=True, **changes) as live:
        yield live


@contextmanager
def begun(live: Live, n_bytes: int, *headers: str) -> Generator[socket.socket]:
    """A connection that has sent the head of an upload, and says how long its file is."""
    n_body = len(HEAD) + n_bytes + len(TAIL)
    lines = [
        "POST /v1/files HTTP/1.1", "Host: a", "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {n_body}", *headers, "", "",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as wire:
        wire.sendall("\r\n".join(lines).encode())
        yield wire


def answer_of(wire: socket.socket) -> tuple[int, Any]:
    """Status and JSON of the answer on a connection."""
    answer = http.client.HTTPResponse(wire)
    answer.begin()
    return answer.status, json.loads(answer.read())


def held(live: Live) -> int:
    """Bytes of the memory budget that are in use."""
    return live.application.state.context.service.budget.held


def has_left_nothing(live: Live, storage: MemoryStorage) -> Callable[[], bool]:
    """Whether an upload was aborted, and its memory is free."""
    return lambda: storage.n_aborted == 1 and not storage.kept and held(live) == 0


def test_upload(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A file that comes in many small pieces arrives whole, and its memory is given back."""
    content = bytes(range(256)) * 40
    with serving(engine) as live, begun(live, len(content)) as wire:
        body = HEAD + content + TAIL
        for start in range(0, len(body), 100):
            wire.sendall(body[start : start + 100])
        status, file = answer_of(wire)
        assert (status, file["bytes"]) == (200, len(content))
        assert storage.kept[file["id"]][1] == content
        wait_until(lambda: held(live) == 0)


def test_hang_up(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller that hangs up in the middle leaves nothing, and is counted as gone."""
    with serving(engine) as live:
        with begun(live, MIB) as wire:
            wire.sendall(HEAD + b"x" * 1000)
            assert storage.writing.wait(10)
            assert held(live) == _UPLOAD_BYTES
        wait_until(has_left_nothing(live, storage))
        registry = live.application.state.context.metrics.registry
        wait_until(
            lambda: registry.get_sample_value("matryo_aborts_total", {"reason": "hang_up"}) == 1
        )


def test_hang_up_while_a_thread_writes(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller that is gone while the disk is slow leaves nothing once the disk is done."""
    storage.gate.clear()
    with serving(engine) as live:
        with begun(live, MIB) as wire:
            wire.sendall(HEAD + b"x" * 1000)
            assert storage.writing.wait(10)
        assert storage.n_aborted == 0
        storage.gate.set()
        wait_until(has_left_nothing(live, storage))


def test_stalled(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller that stops to send gets 408, with the settings that bound its time."""
    with serving(engine, body_timeout_s=0.2) as live, begun(live, MIB) as wire:
        wire.sendall(HEAD + b"x" * 100_000)
        status, answer = answer_of(wire)
        assert (status, answer["error"]["code"]) == (408, "request_timeout")
        assert "MATRYO_MIN_READ_RATE" in answer["error"]["message"]
        wait_until(has_left_nothing(live, storage))


def test_trickle(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller that sends a byte at a time, and never stops for long, gets 408 all the same."""
    with serving(engine, body_timeout_s=0.3, min_read_rate=MIB) as live, begun(live, MIB) as wire:
        wire.sendall(HEAD)
        while not select.select([wire], [], [], 0.02)[0]:
            wire.sendall(b"x")
        assert answer_of(wire)[0] == 408
        wait_until(has_left_nothing(live, storage))


def test_slow_but_steady(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A file may take longer than a body's time, if it comes at the rate of the setting."""
    with (
        serving(engine, body_timeout_s=0.5, min_read_rate=1000) as live,
        begun(live, 30_000) as wire,
    ):
        wire.sendall(HEAD)
        for _ in range(15):
            wire.sendall(b"x" * 2000)
            assert not select.select([wire], [], [], 0.1)[0], "1.5 s in all, and no answer yet"
        wire.sendall(TAIL)
        assert answer_of(wire)[0] == 200


def test_a_slow_disk_slows_the_caller(engine: FakeEngine, storage: MemoryStorage) -> None:
    """While the storage is slow, the server reads no more of the body than it may hold."""
    storage.gate.clear()
    n_bytes = 50 * MIB
    with serving(engine) as live, begun(live, n_bytes) as wire:
        wire.settimeout(60)
        sender = threading.Thread(
            target=lambda: wire.sendall(HEAD + bytes(n_bytes) + TAIL), daemon=True
        )
        sender.start()
        assert storage.writing.wait(10)
        assert live.server.connections
        (connection,) = live.server.connections._all
        # The server has taken what it takes once the socket is full.
        wait_until(lambda: not select.select([], [wire], [], 0)[1])
        assert connection.n_arriving < MIB
        assert sender.is_alive()
        storage.gate.set()
        sender.join(60)
        assert answer_of(wire) == (200, json.loads(json.dumps(answer_to(storage, n_bytes))))


def answer_to(storage: MemoryStorage, n_bytes: int) -> dict[str, Any]:
    """The object of the only file."""
    ((file, content),) = storage.kept.values()
    assert len(content) == n_bytes
    return {
        "id": file.id, "object": "file", "bytes": n_bytes, "created_at": file.created_at,
        "expires_at": file.expires_at, "filename": "in.jsonl", "purpose": "batch",
        "status": "processed", "status_details": None,
    }  # fmt: skip


def test_too_large_is_not_asked_for(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller that waits for 100 Continue gets its 413 before it sends the file."""
    with (
        serving(engine, batch_max_file_bytes=1024) as live,
        begun(live, MIB, "Expect: 100-continue") as wire,
    ):
        status, answer = answer_of(wire)
    assert (status, answer["error"]["code"]) == (413, "file_too_large")
    assert not storage.uploads


def test_too_large_in_chunks(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A file without a Content-Length is refused at the first byte over the limit."""
    with serving(engine, batch_max_file_bytes=100_000) as live:
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as wire:
            wire.sendall(
                b"POST /v1/files HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            )
            wire.sendall(b"%x\r\n%b\r\n" % (len(HEAD), HEAD))
            for _ in range(2000):
                if select.select([wire], [], [], 0)[0]:
                    break
                wire.sendall(b"%x\r\n%b\r\n" % (10_000, b"x" * 10_000))
            status, answer = answer_of(wire)
        assert (status, answer["error"]["code"]) == (413, "file_too_large")
        wait_until(has_left_nothing(live, storage))


def test_no_memory(engine: FakeEngine, storage: MemoryStorage) -> None:
    """An upload that the memory budget has no room for is a 429, before anything is read."""
    with serving(engine, memory_budget_bytes=70 * MIB) as live:
        budget = live.application.state.context.service.budget
        lease = budget.lease()
        lease.grow(budget.limit - _UPLOAD_BYTES + 1, "body")
        with begun(live, 10) as wire:
            assert answer_of(wire)[0] == 429
        lease.end()
        assert not storage.uploads
        with begun(live, 10) as wire:
            wire.sendall(HEAD + b"x" * 10 + TAIL)
            assert answer_of(wire)[0] == 200


def test_compressed(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A compressed form, and a body that is no form, are not read."""
    with serving(engine) as live:
        with begun(live, 10, "Content-Encoding: gzip") as wire:
            assert answer_of(wire)[0] == 415
        with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)) as connection:
            for kind in ("application/json", "multipart/mixed; boundary=b", ""):
                connection.request("POST", "/v1/files", b"{}", {"content-type": kind})
                answer = connection.getresponse()
                assert answer.status == 415
                assert json.loads(answer.read())["error"]["code"] == "unsupported_content_type"


def stored(storage: MemoryStorage, content: bytes) -> str:
    """The path of the bytes of a new file."""
    file = File(f"file-d{len(storage.kept)}", "", "a.jsonl", "batch_output", 0, 0, 2**40, ())
    storage.keep(file, content)
    return f"/v1/files/{file.id}/content"


def test_download_hang_up(engine: FakeEngine, storage: MemoryStorage) -> None:
    """What a download reads from is closed when its caller hangs up."""
    path = stored(storage, bytes(20 * MIB))
    with serving(engine) as live:
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as wire:
            wire.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert wire.recv(100)
            assert held(live) == _DOWNLOAD_BYTES
        wait_until(lambda: storage.n_closed == 1 and held(live) == 0)


def test_slow_reader(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A caller that does not read its download is disconnected, and what it read from closed."""
    path = stored(storage, bytes(60 * MIB))
    with (
        serving(engine, write_timeout_s=0.3) as live,
        socket.create_connection(("127.0.0.1", live.port), timeout=20) as wire,
    ):
        wire.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_until(lambda: storage.n_closed == 1 and held(live) == 0)


def test_broken_download(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A store that fails in the middle ends the connection, so that no caller takes a part for all."""
    path = stored(storage, bytes(50 * CHUNK))
    n_reads = 0

    def fail() -> None:
        nonlocal n_reads
        n_reads += 1
        if n_reads > 10:
            raise StorageUnavailable

    storage.fail = fail
    with (
        serving(engine) as live,
        closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)) as connection,
    ):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead):
            answer.read()


def test_stop(engine: FakeEngine, storage: MemoryStorage) -> None:
    """A server that stops refuses the upload that still comes, and finishes the download."""
    content = bytes(range(256)) * 10_000
    path = stored(storage, content)
    with (
        serving(engine, grace_s=20) as live,
        begun(live, MIB) as wire,
        socket.create_connection(("127.0.0.1", live.port), timeout=20) as other,
    ):
        wire.sendall(HEAD + b"x" * 1000)
        assert storage.writing.wait(10)
        storage.gate.clear()
        other.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        metrics = live.application.state.context.metrics
        wait_until(lambda: metrics.n_in_progress == 2)
        live.server.stop()
        wait_until(lambda: live.server.connections and live.server.connections.is_draining)
        storage.gate.set()
        status, answer = answer_of(wire)
        assert status == 503
        assert "shutting down" in answer["error"]["message"]
        download = http.client.HTTPResponse(other)
        download.begin()
        assert download.read() == content
        assert storage.n_aborted == 1
        assert len(storage.kept) == 1


def test_the_end_of_the_grace(engine: FakeEngine, storage: MemoryStorage) -> None:
    """An upload that a thread still writes when the server ends is removed after that write."""
    with serving(engine, grace_s=0.1) as live, begun(live, MIB) as wire:
        storage.gate.clear()
        wire.sendall(HEAD + b"x" * 1000)
        assert storage.writing.wait(10)
        live.server.stop()
        # What is left at the end of the grace is cancelled, and its connection cut.
        wait_until(lambda: not live.server.connections)
        storage.gate.set()
    assert storage.n_aborted == 1
    assert not storage.kept
