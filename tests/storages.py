"""Storages of the Batch API for tests: in a folder, or shared by several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, select

from matryo.batch.blobs import MARK, Blobs
from matryo.batch.blobs.local import LocalBlobs
from matryo.batch.objects import Batch, File, Limits, WindowResult
from matryo.batch.sql.claims import SqlClaim
from matryo.batch.sql.database import Database, sqlite_url
from matryo.batch.sql.storage import SqlStorage
from matryo.batch.sql.tables import batches, files, pieces

DAY_S = 86_400
START = 1_800_000_000
LIMITS = Limits(
    max_file_bytes=10_000,
    key_bytes=100_000,
    key_files=100,
    key_batches=100,
    retention_s=30 * DAY_S,
    lease_s=60,
)


class Clock:
    """A clock that tests move."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@dataclass
class Place:
    """A database and a store.

    Attributes:
        make_blobs: a new handle of the store of bytes.
        clock: of the database.
    """

    url: URL
    make_blobs: Callable[[], Blobs]
    clock: Clock = field(default_factory=Clock)
    opened: list[Database] = field(default_factory=list[Database])

    def database(self) -> Database:
        """A new handle of the database, as another process has one."""
        database = Database(self.url, self.clock)
        self.opened.append(database)
        return database

    def storage(self, blobs: Blobs | None = None, **limits: float) -> SqlStorage:
        """A new handle of the storage, as another process has one."""
        database = self.database()
        database.create()
        made = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]
        return SqlStorage(database, blobs or self.make_blobs(), made)

    def stored(self) -> set[str]:
        """Names of all objects in the store."""
        return set(self.make_blobs().keys()) - {MARK}

    def known(self) -> set[str]:
        """Names of all objects that the database knows."""
        with self.database().reading() as transaction:
            return set(transaction.connection.execute(select(pieces.c.key)).scalars())

    def row_counts(self) -> tuple[int, int]:
        """Numbers of files, unfinished uploads included, and of batches."""
        with self.database().reading() as transaction:
            counts = [
                len(transaction.connection.execute(select(table.c.id)).all())
                for table in (files, batches)
            ]
        return counts[0], counts[1]

    def close(self) -> None:
        """Close every handle of the database."""
        for database in self.opened:
            database.close()


def folder_place(folder: Path) -> Place:
    """SQLite and bytes in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Place(sqlite_url(folder / "batches.sqlite3"), lambda: LocalBlobs(folder))


@contextlib.contextmanager
def memory_folder() -> Generator[Path, None, None]:
    """A new folder, in memory if this system has such a disk: syncing there takes no time."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder below is new and private
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def add_file(storage: SqlStorage, data: bytes = b"1\n2\n3\n", owner: str = "ann") -> File:
    """Upload a file."""
    upload = storage.add_file(owner, "lines.jsonl")
    upload.write(data)
    return upload.commit()


def add_batch(storage: SqlStorage, file: File | None = None, owner: str = "ann") -> Batch:
    """Add a batch over a file of its own, or over `file`."""
    file = file or add_file(storage, owner=owner)
    return storage.add_batch(
        owner,
        weight=1,
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
    )


def claimed(storage: SqlStorage) -> SqlClaim:
    """The claim of the batch that is due."""
    claim = storage.claim()
    assert claim is not None
    return claim


def window(output: bytes = b"a\n", errors: bytes = b"", n_lines: int = 1) -> WindowResult:
    """The result of a window of lines of two bytes."""
    return WindowResult(
        output=output,
        errors=errors,
        n_lines=n_lines,
        n_bytes=2 * n_lines,
        n_completed=output.count(b"\n"),
        n_failed=errors.count(b"\n"),
        n_tokens=3 * n_lines,
    )


def content(storage: SqlStorage, file: File) -> bytes:
    """All bytes of a file."""
    return b"".join(storage.read(file))


def results(storage: SqlStorage, batch: Batch, owner: str = "ann") -> Sequence[bytes]:
    """The bytes of a batch's two result files; empty for none."""
    ids = (batch.output_file_id, batch.error_file_id)
    return [content(storage, storage.file(owner, one)) if one else b"" for one in ids]
