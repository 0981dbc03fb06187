"""A storage of the Batch API in memory: one input, leases that a test ends, faults on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matryo.batch.objects import (
    Batch,
    Counts,
    Ending,
    Figures,
    File,
    LeaseLost,
    LineError,
    Progress,
    WindowResult,
)

NOW = 1_700_000_000
DAY_S = 86_400


def file_of(content: bytes) -> File:
    """An input file."""
    return File("file-in", "", "in.jsonl", "batch", len(content), NOW, NOW + DAY_S, ())


def batch_of(batch_id: str = "batch_1", owner: str = "") -> Batch:
    """A batch that is validating, and ends a day after `NOW`."""
    return Batch(
        id=batch_id,
        owner=owner,
        caller_weight=1.0,
        endpoint="/v1/embeddings",
        model=None,
        input_file_id="file-in",
        completion_window="24h",
        status="validating",
        output_file_id=None,
        error_file_id=None,
        errors=(),
        created_at=NOW,
        in_progress_at=None,
        expires_at=NOW + DAY_S,
        finalizing_at=None,
        completed_at=None,
        failed_at=None,
        expired_at=None,
        cancelling_at=None,
        cancelled_at=None,
        counts=Counts(),
        n_tokens=0,
        metadata=None,
        output_expires_after_s=None,
    )


@dataclass
class Entry:
    """One batch, and what was committed of it."""

    batch: Batch
    content: bytes
    progress: Progress = field(default_factory=Progress)
    output: bytes = b""
    errors: bytes = b""
    epoch: int = 0
    is_held: bool = False
    delays: list[float] = field(default_factory=list[float])


class MemoryStorage:
    """What a runner uses of a storage.

    Attributes:
        before: called with the name of each call, on the thread of the call; may raise, or wait.
        calls: names of all calls.
    """

    def __init__(self, *contents: bytes, owners: Sequence[str] = ()) -> None:
        names = owners or [""] * len(contents)
        self.entries = [
            Entry(batch_of(f"batch_{index}", owner), content)
            for index, (content, owner) in enumerate(zip(contents, names, strict=True))
        ]
        self.before: Callable[[str], None] = lambda _: None
        self.calls: list[str] = []
        self.lock = threading.Lock()

    def call(self, name: str) -> None:
        """Note a call."""
        self.calls.append(name)
        self.before(name)

    def claim(self, *, ending: bool = False) -> MemoryClaim | None:
        """The first batch that has not ended and that nobody holds."""
        self.call("claim_ending" if ending else "claim")
        with self.lock:
            for entry in self.entries:
                is_open = entry.batch.status in ("validating", "in_progress", "cancelling")
                if is_open and not entry.is_held and not (entry.delays and entry.delays[-1]):
                    if ending and entry.batch.status != "cancelling":
                        continue
                    entry.is_held, entry.epoch = True, entry.epoch + 1
                    return MemoryClaim(self, entry)
        return None

    def read(self, file: File, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The input in small chunks."""
        content = self.entry_of(file).content[:end]
        for at in range(start, len(content), 1000):
            self.call("read")
            yield content[at : at + 1000]

    def entry_of(self, file: File) -> Entry:
        """The batch whose input a file is."""
        return next(entry for entry in self.entries if entry.batch.id == file.filename)

    def cancel(self, index: int = 0) -> None:
        """Cancel a batch."""
        with self.lock:
            entry = self.entries[index]
            entry.batch = replace(entry.batch, status="cancelling", cancelling_at=NOW)

    def lose(self, index: int = 0) -> None:
        """End the lease of a batch: another process may claim the batch."""
        with self.lock:
            self.entries[index].epoch += 1
            self.entries[index].is_held = False

    def sweep(self) -> None:
        """Remove nothing."""
        self.call("sweep")

    def figures(self) -> Figures:
        """Numbers for metrics."""
        self.call("figures")
        found: dict[Any, int] = {}
        for entry in self.entries:
            found[entry.batch.status] = found.get(entry.batch.status, 0) + 1
        return Figures(found, NOW - 60, NOW + DAY_S, 1234)


class MemoryClaim:
    """A claim of a batch in memory."""

    def __init__(self, storage: MemoryStorage, entry: Entry) -> None:
        self._storage, self._entry = storage, entry
        self.epoch = entry.epoch
        self.batch, self.progress = entry.batch, entry.progress
        self.input = replace(file_of(entry.content), filename=entry.batch.id)
        self._busy = threading.Lock()

    def _do(self, name: str, change: Callable[[Entry], Batch]) -> Batch:
        assert self._busy.acquire(blocking=False), "two threads use one claim"
        try:
            self._storage.call(name)
            with self._storage.lock:
                if self._entry.epoch != self.epoch or not self._entry.is_held:
                    raise LeaseLost
                self.batch = self._entry.batch = change(self._entry)
                self.progress = self._entry.progress
                return self.batch
        finally:
            self._busy.release()

    def renew(self) -> Batch:
        """The newest state."""
        return self._do("renew", lambda entry: entry.batch)

    def reject(self, errors: Sequence[LineError]) -> Batch:
        """Fail the batch."""

        def change(entry: Entry) -> Batch:
            if entry.batch.status == "cancelling":
                return entry.batch
            entry.is_held = False
            return replace(entry.batch, status="failed", errors=tuple(errors), failed_at=NOW)

        return self._do("reject", change)

    def begin(self, total: int, model: str | None) -> Batch:
        """Put the batch in progress."""

        def change(entry: Entry) -> Batch:
            if entry.batch.status != "validating":
                return entry.batch
            return replace(
                entry.batch,
                status="in_progress",
                model=model,
                counts=Counts(total),
                in_progress_at=NOW,
            )

        return self._do("begin", change)

    def commit(self, window: WindowResult) -> Batch:
        """Add a window."""

        def change(entry: Entry) -> Batch:
            done, counts = entry.progress, entry.batch.counts
            entry.output += window.output
            entry.errors += window.errors
            entry.progress = Progress(
                done.n_lines + window.n_lines, done.n_bytes + window.n_bytes, done.n_windows + 1
            )
            return replace(
                entry.batch,
                n_tokens=entry.batch.n_tokens + window.n_tokens,
                counts=replace(
                    counts,
                    completed=counts.completed + window.n_completed,
                    failed=counts.failed + window.n_failed,
                ),
            )

        return self._do("commit", change)

    def finish(self, status: Ending) -> Batch:
        """End the batch."""

        def change(entry: Entry) -> Batch:
            entry.is_held = False
            ending = "cancelled" if entry.batch.status == "cancelling" else status
            return replace(entry.batch, status=ending)

        return self._do("finish", change)

    def release(self, delay_s: float = 0) -> None:
        """Give the batch up."""

        def change(entry: Entry) -> Batch:
            entry.is_held = False
            entry.delays.append(delay_s)
            return entry.batch

        self._do("release", change)
