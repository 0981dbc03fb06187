"""A storage of the Batch API in memory, which can wait and fail, for tests of what stands before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from matryo.batch.objects import Batch, Counts, Figures, File, Order, Page, Piece, Purpose
from matryo.batch.storage import Storage
from matryo.core.errors import BatchConflict, FileTooLarge, MatryoError, UnknownBatch, UnknownFile

NOW = 1_800_000_000
CHUNK = 1000


class MemoryUpload:
    """An upload, of which the storage counts whether it was committed or aborted."""

    def __init__(self, storage: MemoryStorage, file: File, expires_after_s: int | None) -> None:
        self.storage, self.file, self.expires_after_s = storage, file, expires_after_s
        self.content = bytearray()
        self.n_bytes = 0
        self.is_open = True
        self.is_writing = False

    def write(self, data: bytes) -> None:
        """Append bytes, once the gate is open."""
        self.is_writing = True
        self.storage.writing.set()
        assert self.storage.gate.wait(30)
        self.is_writing = False
        self.storage.fail()
        assert self.is_open
        self.content += data
        self.n_bytes += len(data)
        if self.n_bytes > self.storage.max_file_bytes:
            raise FileTooLarge(max_bytes=self.storage.max_file_bytes)

    def commit(self) -> File:
        """The file."""
        assert self.is_open
        self.is_open = False
        life_s = self.expires_after_s or 30 * 86_400
        return self.storage.keep(replace(self.file, expires_at=NOW + life_s), bytes(self.content))

    def abort(self) -> None:
        """Forget the bytes. Only one thread at a time may use an upload."""
        if self.is_open and not self.is_writing:
            self.storage.n_aborted += 1
        self.is_open = False


class MemoryStorage:
    """Files and batches of all owners.

    Attributes:
        gate: a write waits until it is open.
        writing: a write has begun.
        error: what the next calls raise.
        n_aborted: uploads that were aborted.
        n_closed: reads that were closed before their end, on a thread of the storage's callers.
    """

    def __init__(self, max_file_bytes: int = 1_000_000) -> None:
        self.max_file_bytes = max_file_bytes
        self.gate, self.writing = threading.Event(), threading.Event()
        self.gate.set()
        self.error: MatryoError | None = None
        self.uploads: list[MemoryUpload] = []
        self.n_aborted = self.n_closed = 0
        self.kept: dict[str, tuple[File, bytes]] = {}
        self.jobs: dict[str, Batch] = {}

    def fail(self) -> None:
        """Raise the error that the test wants, on a thread that is not the event loop's."""
        assert _is_thread(), "on the event loop"
        if self.error:
            raise self.error

    def keep(self, file: File, content: bytes) -> File:
        """Store a file of these bytes."""
        file = replace(file, n_bytes=len(content), pieces=(Piece(file.id, len(content)),))
        self.kept[file.id] = file, content
        return file

    def add_file(
        self,
        owner: str,
        filename: str,
        purpose: Purpose = "batch",
        expires_after_s: int | None = None,
    ) -> MemoryUpload:
        """See `Storage.add_file`."""
        self.fail()
        number = len(self.uploads)
        file = File(f"file-{number}", owner, filename, purpose, 0, NOW + number, NOW, ())
        self.uploads.append(MemoryUpload(self, file, expires_after_s))
        return self.uploads[-1]

    def file(self, owner: str, file_id: str) -> File:
        """See `Storage.file`."""
        self.fail()
        file, _ = self.kept.get(file_id, (None, b""))
        if file is None or file.owner != owner:
            raise UnknownFile(file_id)
        return file

    def files(
        self,
        owner: str,
        *,
        purpose: Purpose | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
    ) -> Page[File]:
        """See `Storage.files`."""
        if after:
            self.file(owner, after)
        self.fail()
        found = [one for one, _ in self.kept.values() if one.owner == owner]
        found = [one for one in found if purpose in (None, one.purpose)]
        if order == "desc":
            found.reverse()
        start = 1 + [one.id for one in found].index(after) if after else 0
        return Page(tuple(found[start : start + limit]), len(found) > start + limit)

    def delete_file(self, owner: str, file_id: str) -> None:
        """See `Storage.delete_file`."""
        del self.kept[self.file(owner, file_id).id]

    def read(self, file: File, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Storage.read`."""
        content = self.kept[file.id][1][start:end]
        is_whole = False
        try:
            for at in range(0, len(content), CHUNK):
                self.fail()
                assert self.gate.wait(30)
                yield content[at : at + CHUNK]
            is_whole = True
        finally:
            self.n_closed += not is_whole and _is_thread()

    def add_batch(
        self,
        owner: str,
        *,
        weight: float,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
        output_expires_after_s: int | None = None,
    ) -> Batch:
        """See `Storage.add_batch`."""
        try:
            self.file(owner, input_file_id)
        except UnknownFile:
            raise UnknownFile(input_file_id, param="input_file_id") from None
        number = len(self.jobs)
        moments = dict.fromkeys(
            (
                "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
                "cancelling_at", "cancelled_at",
            )
        )  # fmt: skip
        batch = Batch(
            id=f"batch_{number}",
            owner=owner,
            caller_weight=weight,
            endpoint=endpoint,
            model=None,
            input_file_id=input_file_id,
            completion_window=completion_window,
            status="validating",
            output_file_id=None,
            error_file_id=None,
            errors=(),
            created_at=NOW + number,
            expires_at=NOW + number + 86_400,
            counts=Counts(),
            n_tokens=0,
            metadata=metadata,
            output_expires_after_s=output_expires_after_s,
            **moments,
        )
        self.jobs[batch.id] = batch
        return batch

    def batch(self, owner: str, batch_id: str) -> Batch:
        """See `Storage.batch`."""
        self.fail()
        batch = self.jobs.get(batch_id)
        if batch is None or batch.owner != owner:
            raise UnknownBatch(batch_id)
        return batch

    def batches(self, owner: str, *, after: str | None = None, limit: int = 20) -> Page[Batch]:
        """See `Storage.batches`."""
        if after:
            self.batch(owner, after)
        self.fail()
        found = [one for one in reversed(self.jobs.values()) if one.owner == owner]
        start = 1 + [one.id for one in found].index(after) if after else 0
        return Page(tuple(found[start : start + limit]), len(found) > start + limit)

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """See `Storage.cancel`."""
        batch = self.batch(owner, batch_id)
        if batch.status in ("completed", "failed", "expired"):
            raise BatchConflict(batch.status)
        self.jobs[batch_id] = replace(batch, status="cancelling", cancelling_at=NOW)
        return self.jobs[batch_id]

    def claim(self, *, ending: bool = False) -> None:
        """Nobody works on these batches."""

    def sweep(self) -> None:
        """Nothing expires."""

    def figures(self) -> Figures:
        """Nobody looks at them."""
        return Figures({}, None, None, 0)

    def close(self) -> None:
        """See `Storage.close`."""

    def as_storage(self) -> Storage:
        """The same, as code that is typed wants it."""
        return cast("Storage", self)


def _is_thread() -> bool:
    """Whether this is a thread that may wait."""
    return threading.current_thread().name.startswith("matryo-files")
