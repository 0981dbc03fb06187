"""What is no longer needed, and what did crashes leave behind?"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from sqlalchemy import delete, select, update

from matryo.batch.blobs import MARK, Blobs
from matryo.batch.objects import Limits
from matryo.batch.sql.database import Database, Transaction
from matryo.batch.sql.rows import is_read
from matryo.batch.sql.tables import batches, files, pieces
from matryo.batch.sql.uploads import remove_files

log = logging.getLogger("matryo")

_STALE_S = 3600  # an upload that grew no more for so long has no writer
_FILES, _KEYS = 100, 500  # of one transaction
_OF_FILE = re.compile(r"files/file-\w+/\d+")
_OF_BATCH = re.compile(r"batches/(batch_\w+)/(\d+)-[\w-]+")


def sweep(database: Database, blobs: Blobs, limits: Limits) -> None:
    """Remove files that expired, old batches, and bytes that nobody knows."""
    while remove_files(database, blobs, _useless) == _FILES:
        pass
    _remove_batches(database, limits)
    n_removed = 0
    for keys in _some(blobs.keys()):
        garbage = _garbage(database, keys)
        blobs.delete(garbage)
        n_removed += len(garbage)
    blobs.tidy()
    if n_removed:
        log.info("removed %d objects that a crash left in the batch store", n_removed)


def _useless(transaction: Transaction) -> list[str]:
    """Ids of files that expired or were deleted, and of uploads that nobody goes on with."""
    is_over = files.c.is_ready & (files.c.is_deleted | (files.c.expires_at <= transaction.moment))
    is_stale = ~files.c.is_ready & (files.c.touched_at < transaction.now - _STALE_S)
    query = (
        select(files.c.id)
        .where((is_over & ~is_read(files.c.id)) | is_stale)
        .limit(_FILES)
        .with_for_update(skip_locked=True)  # another process may sweep too
    )
    return list(transaction.connection.execute(query).scalars())


def _remove_batches(database: Database, limits: Limits) -> None:
    """Remove batches that ended long ago and whose files are gone."""
    with database.writing() as transaction:
        has_file = (
            select(files.c.seq)
            .where(files.c.id.in_((batches.c.output_file_id, batches.c.error_file_id)))
            .exists()
        )
        is_old = batches.c.ended_at <= transaction.moment - limits.retention_s
        transaction.connection.execute(delete(batches).where(is_old & ~has_file))


def _some(keys: Iterator[str]) -> Iterator[list[str]]:
    """The keys in lists."""
    some: list[str] = []
    for key in keys:
        some.append(key)
        if len(some) == _KEYS:
            yield some
            some = []
    if some:
        yield some


def _garbage(database: Database, keys: list[str]) -> list[str]:
    """Those of the keys that no row knows, and that nobody is about to make known.

    The keys were read before the rows. An object whose row comes later is one that the holder of a
    batch has just written. Names that this package never gives stay.
    """
    with database.writing() as transaction:
        known = set(
            transaction.connection.execute(
                select(pieces.c.key).where(pieces.c.key.in_(keys))
            ).scalars()
        )
        return [
            key
            for key in keys
            if key not in known
            and key != MARK
            and (_OF_FILE.fullmatch(key) or _is_abandoned(transaction, key))
        ]


def _is_abandoned(transaction: Transaction, key: str) -> bool:
    """Whether an object that a batch does not know can never become a part of the batch."""
    named = _OF_BATCH.fullmatch(key)
    if named is None:
        return False
    batch_id, epoch = named[1], int(named[2])
    row = transaction.connection.execute(
        select(batches.c.epoch, batches.c.ended_at).where(batches.c.id == batch_id)
    ).one_or_none()
    if row is None or row.ended_at is not None or epoch < row.epoch:
        return True
    # Its writer let the lease run out. A new epoch keeps that writer from coming back.
    changed = transaction.connection.execute(
        update(batches)
        .where(
            (batches.c.id == batch_id)
            & (batches.c.epoch == epoch)
            & (batches.c.lease_until <= transaction.now)
        )
        .values(epoch=epoch + 1)
    )
    return changed.rowcount == 1
