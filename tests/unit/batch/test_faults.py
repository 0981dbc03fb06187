"""A full disk, a database or a store that fails: a clear error, no damage, and then it goes on."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event

from matryo.batch.sql import uploads
from matryo.batch.sql.storage import SqlStorage
from matryo.core.errors import (
    MatryoError,
    StorageDamaged,
    StorageFull,
    StorageUnavailable,
)
from tests.storages import Place, add_batch, add_file, claimed, content, results, window


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The error number of every sync of a file; empty for none."""
    numbers: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if numbers:
            raise OSError(numbers[0], os.strerror(numbers[0]))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return numbers


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageUnavailable),
        (errno.EROFS, StorageUnavailable),
    ],
)
def test_a_disk_that_fails(
    storage: SqlStorage,
    place: Place,
    failing: list[int],
    number: int,
    error: type[MatryoError],
) -> None:
    """An upload and a window on a disk that fails change nothing; once it works, both pass."""
    batch = add_batch(storage)
    claim = claimed(storage)
    claim.begin(2, None)
    claim.commit(window(b"a\n"))
    before = place.stored()
    failing.append(number)
    upload = storage.add_file("ann", "in")
    upload.write(b"abc")
    with pytest.raises(error):
        upload.commit()
    with pytest.raises(error):
        claim.commit(window(b"b\n"))
    upload.abort()
    assert (place.stored(), place.known()) == (before, before)
    assert storage.batch("ann", batch.id).counts.completed == 1
    failing.clear()
    assert content(storage, add_file(storage, b"abc")) == b"abc"
    claim.commit(window(b"b\n"))
    assert results(storage, claim.finish("completed")) == [b"a\nb\n", b""]


def broken(place: Place, when: Callable[[str], bool], error: Exception) -> Callable[[], None]:
    """Have statements of the place's first database raise; returns what mends it."""

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if when(statement):
            raise error

    engine = place.opened[0].engine
    event.listen(engine, "before_cursor_execute", fail)
    return lambda: event.remove(engine, "before_cursor_execute", fail)


def test_a_database_that_goes_away(place: Place, storage: SqlStorage) -> None:
    """Each call while the database fails is StorageUnavailable, and works afterwards."""
    file = add_file(storage)
    batch = add_batch(storage, file)
    claim = claimed(storage)
    claim.begin(2, None)
    mend = broken(place, lambda _: True, _error(sqlite3.SQLITE_IOERR))
    calls: list[Callable[[], Any]] = [
        lambda: storage.file("ann", file.id),
        lambda: storage.files("ann"),
        lambda: storage.add_file("ann", "in"),
        lambda: storage.delete_file("ann", file.id),
        lambda: add_batch(storage, file),
        lambda: storage.batch("ann", batch.id),
        lambda: storage.batches("ann"),
        lambda: storage.cancel("ann", batch.id),
        storage.claim,
        storage.sweep,
        storage.figures,
        claim.renew,
        lambda: claim.commit(window()),
        lambda: claim.finish("completed"),
        claim.release,
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable):
            call()
    mend()
    claim.commit(window(b"a\n"))
    claim.commit(window(b"b\n"))
    assert results(storage, claim.finish("completed")) == [b"a\nb\n", b""]
    storage.sweep()
    assert place.stored() == place.known()


def _error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as of the test")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (sqlite3.SQLITE_FULL, StorageFull),
        (sqlite3.SQLITE_BUSY, StorageUnavailable),
        (sqlite3.SQLITE_READONLY, StorageUnavailable),
        (sqlite3.SQLITE_CORRUPT, StorageDamaged),
    ],
)
def test_a_database_that_refuses(
    place: Place, storage: SqlStorage, code: int, error: type[MatryoError]
) -> None:
    """The error says whether there is no room, no answer, or damage; bytes without rows go."""
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(1, None)
    mend = broken(place, lambda statement: "INSERT INTO matryo_pieces" in statement, _error(code))
    with pytest.raises(error):
        claim.commit(window(b"a\n"))
    mend()
    assert claim.renew().counts.completed == 0
    claim.commit(window(b"b\n"))
    assert results(storage, claim.finish("completed")) == [b"b\n", b""]
    storage.sweep()
    assert place.stored() == place.known()


def test_a_commit_whose_answer_is_lost(place: Place, storage: SqlStorage) -> None:
    """A window that the database took, without saying it, is taken once when it comes again."""
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(2, None)
    engine = place.opened[0].engine
    real = engine.dialect.do_commit

    def commit(connection: Any) -> None:
        real(connection)
        engine.dialect.do_commit = real  # type: ignore[method-assign]
        raise _error(sqlite3.SQLITE_IOERR)

    engine.dialect.do_commit = commit  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        claim.commit(window(b"a\n"))
    claim.renew()
    assert claim.commit(window(b"again\n")).counts.completed == 1
    assert claim.commit(window(b"b\n")).counts.completed == 2
    assert results(storage, claim.finish("completed")) == [b"a\nb\n", b""]
    storage.sweep()
    assert place.stored() == place.known()


def test_an_upload_whose_answer_is_lost(place: Place, storage: SqlStorage) -> None:
    """An upload whose commit failed is gone once it is aborted, whatever the database did."""
    upload = storage.add_file("ann", "in")
    upload.write(b"abc")
    engine = place.opened[0].engine
    real, seen = engine.dialect.do_commit, []

    def commit(connection: Any) -> None:
        real(connection)
        seen.append(1)
        if len(seen) == 2:  # the piece, then the file
            raise _error(sqlite3.SQLITE_IOERR)

    engine.dialect.do_commit = commit  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        upload.commit()
    engine.dialect.do_commit = real  # type: ignore[method-assign]
    assert len(storage.files("ann").items) == 1
    upload.abort()
    assert storage.files("ann").items == ()
    assert place.stored() == set()


def test_an_abort_never_raises(
    place: Place, storage: SqlStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """An abort that fails is logged, and a sweep removes what it left."""
    upload = storage.add_file("ann", "in")
    upload.write(b"abc")
    mend = broken(place, lambda _: True, _error(sqlite3.SQLITE_IOERR))
    upload.abort()
    mend()
    assert "an upload was not removed" in caplog.text
    place.clock.advance(3601)
    storage.sweep()
    assert place.row_counts() == (0, 0)


def test_tables_that_somebody_removed(place: Place, storage: SqlStorage) -> None:
    """A table that is missing is damage, and the error names the table."""
    with place.database().writing() as transaction:
        transaction.connection.exec_driver_sql("DROP TABLE matryo_pieces")
    upload = storage.add_file("ann", "in")
    upload.write(b"abc")
    with pytest.raises(StorageDamaged, match="matryo_pieces"):
        upload.commit()


def test_a_write_aside_that_a_crash_left(place: Place, storage: SqlStorage, tmp_path: Path) -> None:
    """What was being written an hour ago is removed; what is being written now stays."""
    aside = tmp_path / "batches" / "aside"
    aside.mkdir()
    (aside / "old").write_bytes(b"x")
    (aside / "new").write_bytes(b"x")
    hour_ago = (aside / "new").stat().st_mtime - 3700
    os.utime(aside / "old", (hour_ago, hour_ago))
    storage.sweep()
    assert [path.name for path in aside.iterdir()] == ["new"]


def test_the_last_bytes_are_the_databases(
    storage: SqlStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are refused before the disk is quite full, so that owners can still make room."""
    disk = {"f_frsize": 1000, "f_blocks": 1000, "f_bavail": 60}  # a twentieth is kept
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**disk))
    file = add_file(storage, b"x" * 10_000)
    with pytest.raises(StorageFull):
        storage._blobs.put("x/y", b"x" * 10_001)
    disk["f_frsize"] = 10**9
    disk["f_bavail"] = 0
    with pytest.raises(StorageFull):
        add_file(storage, b"x")
    storage.delete_file("ann", file.id)


def test_a_full_real_disk(storage: SqlStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system's own refusal of a large write is StorageFull."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    upload = storage.add_file("ann", "in")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(StorageFull):
            storage._blobs.put("x/y", b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    upload.abort()
    assert storage._blobs.size("x/y") is None
