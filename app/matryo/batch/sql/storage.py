"""The storage in a database; `matryo.batch.storage.Storage` says what each method promises."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Row, Select, Table, func, insert, select, update

from matryo.batch.blobs import BlobMissing, Blobs
from matryo.batch.objects import Batch, Figures, File, Limits, Order, Page, Purpose
from matryo.batch.sql.claiming import claim_due
from matryo.batch.sql.claims import SqlClaim
from matryo.batch.sql.database import Database, Transaction
from matryo.batch.sql.rows import (
    batch_of,
    file_of,
    is_read,
    owned_batch,
    pieces_of,
    plain_text,
    seen,
    seen_file,
)
from matryo.batch.sql.sweeping import sweep
from matryo.batch.sql.tables import batches, files, pieces
from matryo.batch.sql.uploads import SqlUpload, begin_upload, check_bytes, remove_files
from matryo.batch.storage import CHUNK_BYTES
from matryo.core.errors import (
    BatchConflict,
    InvalidRequest,
    StorageDamaged,
    StorageQuotaReached,
    UnknownFile,
)

_WINDOW = re.compile(r"([1-9]\d{0,3})h")
_HOUR_S = 3600


class SqlStorage:
    """Files and batches of all owners.

    Args:
        database: has its tables.
        blobs: the store that belongs to the database.
        limits: of every owner.
    """

    def __init__(self, database: Database, blobs: Blobs, limits: Limits) -> None:
        self._database, self._blobs, self._limits = database, blobs, limits

    # --- files

    def add_file(
        self,
        owner: str,
        filename: str,
        purpose: Purpose = "batch",
        expires_after_s: int | None = None,
    ) -> SqlUpload:
        """An upload of a new file."""
        return begin_upload(
            self._database,
            self._blobs,
            self._limits,
            owner=owner,
            filename=filename,
            purpose=purpose,
            expires_after_s=expires_after_s,
        )

    def file(self, owner: str, file_id: str) -> File:
        """A file of the owner."""
        with self._database.reading() as transaction:
            row = seen_file(transaction, owner, file_id)
            return file_of(row, pieces_of(transaction, file_id))

    def files(
        self,
        owner: str,
        *,
        purpose: Purpose | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
    ) -> Page[File]:
        """Files of the owner by their age."""
        with self._database.reading() as transaction:
            query = select(files).where(seen(transaction, owner))
            if purpose is not None:
                query = query.where(files.c.purpose == purpose)
            last = None if after is None else seen_file(transaction, owner, after, "after").seq
            rows, has_more = _page(transaction, query, files, last, limit, order)
        return Page(tuple(file_of(row) for row in rows), has_more)

    def delete_file(self, owner: str, file_id: str) -> None:
        """Remove a file."""

        def choose(transaction: Transaction) -> list[str]:
            self._database.lock_owner(transaction, owner)
            row = seen_file(transaction, owner, file_id)
            query = select(is_read(files.c.id)).where(files.c.seq == row.seq)
            if not transaction.connection.execute(query).scalar_one():
                return [file_id]
            transaction.connection.execute(
                update(files).where(files.c.seq == row.seq).values(is_deleted=True)
            )
            return []

        remove_files(self._database, self._blobs, choose)

    def read(self, file: File, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`."""
        stop = file.n_bytes if end is None else min(end, file.n_bytes)
        begin = 0
        for piece in file.pieces:
            at = max(start - begin, 0)
            last = min(stop - begin, piece.n_bytes)
            while at < last:
                upto = min(at + CHUNK_BYTES, last)
                try:
                    yield self._blobs.get(piece.key, at, upto)
                except BlobMissing:
                    raise self._missing(file, piece.key) from None
                at = upto
            begin += piece.n_bytes

    def _missing(self, file: File, key: str) -> UnknownFile | StorageDamaged:
        """Why the store lacks bytes of a file: the file is gone, or they are."""
        with self._database.reading() as transaction:
            query = select(pieces.c.holder).where(pieces.c.key == key)
            if transaction.connection.execute(query).one_or_none() is None:
                return UnknownFile(file.id)
        return StorageDamaged(
            f"the store of the Batch API lacks bytes of {file.id}: {key} is missing or shorter "
            "than it was. Restore it, or delete the file."
        )

    # --- batches

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
        """A new batch, which is validating."""
        window_s = _window_s(completion_window)
        with self._database.writing() as transaction:
            self._database.lock_owner(transaction, owner)
            row = seen_file(transaction, owner, input_file_id, "input_file_id")
            if row.purpose != "batch":
                raise UnknownFile(input_file_id, param="input_file_id")
            used = transaction.connection.execute(
                select(func.count()).where(
                    (batches.c.owner == owner) & batches.c.ended_at.is_(None)
                )
            ).scalar_one()
            if used >= self._limits.key_batches:
                raise StorageQuotaReached(
                    what="unfinished batches",
                    key=owner,
                    limit=self._limits.key_batches,
                    used=used,
                    requested=1,
                )
            check_bytes(transaction, self._limits, owner, 1)
            counts = ("total", "completed", "failed", "n_tokens")
            progress = ("n_lines", "n_bytes", "n_windows", "n_result_bytes")
            added = insert(batches).values(
                id=f"batch_{secrets.token_hex(16)}",
                owner=owner,
                caller_weight=weight,
                endpoint=plain_text(endpoint),
                input_file_id=input_file_id,
                completion_window=completion_window,
                status="validating",
                errors="[]",
                created_at=transaction.moment,
                expires_at=transaction.moment + window_s,
                metadata=None if metadata is None else json.dumps(dict(metadata)),
                output_expires_after_s=output_expires_after_s,
                epoch=0,
                lease_until=0,
                **dict.fromkeys((*counts, *progress), 0),
            )
            return batch_of(transaction.connection.execute(added.returning(*batches.c)).one())

    def batch(self, owner: str, batch_id: str) -> Batch:
        """A batch of the owner."""
        with self._database.reading() as transaction:
            return batch_of(owned_batch(transaction, owner, batch_id))

    def batches(self, owner: str, *, after: str | None = None, limit: int = 20) -> Page[Batch]:
        """Batches of the owner, the newest first."""
        with self._database.reading() as transaction:
            query = select(batches).where(batches.c.owner == owner)
            last = None if after is None else owned_batch(transaction, owner, after, "after").seq
            rows, has_more = _page(transaction, query, batches, last, limit, "desc")
        return Page(tuple(batch_of(row) for row in rows), has_more)

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """The batch, now cancelling."""
        with self._database.writing() as transaction:
            owned_batch(transaction, owner, batch_id)
            running = ("validating", "in_progress", "finalizing")
            transaction.connection.execute(
                update(batches)
                .where((batches.c.id == batch_id) & batches.c.status.in_(running))
                .values(status="cancelling", cancelling_at=transaction.moment)
            )
            batch = batch_of(owned_batch(transaction, owner, batch_id))
        if batch.status not in ("cancelling", "cancelled"):
            raise BatchConflict(batch.status)
        return batch

    # --- work and care

    def claim(self, *, ending: bool = False) -> SqlClaim | None:
        """The right to work on the batch that is due."""
        return claim_due(self._database, self._blobs, self._limits, ending=ending)

    def sweep(self) -> None:
        """Remove what expired, and what crashes left behind."""
        sweep(self._database, self._blobs, self._limits)

    def figures(self) -> Figures:
        """Numbers for metrics."""
        with self._database.reading() as transaction:
            execute = transaction.connection.execute
            counted = select(batches.c.status, func.count()).group_by(batches.c.status)
            by_status = dict(execute(counted).all())
            running = select(func.min(batches.c.created_at), func.min(batches.c.expires_at)).where(
                batches.c.ended_at.is_(None)
            )
            oldest_at, next_expiry_at = execute(running).one()
            n_bytes = sum(
                int(execute(select(func.coalesce(func.sum(column), 0))).scalar_one())
                for column in (files.c.n_bytes, batches.c.n_result_bytes)
            )
        return Figures(by_status, oldest_at, next_expiry_at, n_bytes)

    def close(self) -> None:
        """Close the connections to the database."""
        self._database.close()


def _window_s(window: str) -> int:
    """Seconds of a completion window.

    Raises:
        InvalidRequest: the text is no number of hours.
    """
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise InvalidRequest(
            f"Invalid value for 'completion_window': {plain_text(window)[:40]!r}. Give hours, such "
            "as '24h'.",
            param="completion_window",
        )
    return int(found[1]) * _HOUR_S


def _page(
    transaction: Transaction,
    query: Select[Any],
    table: Table,
    last: int | None,
    limit: int,
    order: Order,
) -> tuple[list[Row[Any]], bool]:
    """The rows of a page after row number `last`, or from the start, and whether more follow."""
    column = table.c.seq
    if last is not None:
        query = query.where(column < last if order == "desc" else column > last)
    query = query.order_by(column.desc() if order == "desc" else column).limit(limit + 1)
    rows = list(transaction.connection.execute(query))
    return rows[:limit], len(rows) > limit
