"""How do bytes of an upload become a file?

Each piece of an upload is reserved in the database before the store gets its bytes. A crash thus
leaves rows of an upload that no longer grows, and bytes that a row names.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from sqlalchemy import delete, func, insert, select, update

from matryo.batch.blobs import Blobs
from matryo.batch.objects import File, Limits, Purpose
from matryo.batch.sql.database import Database, Transaction
from matryo.batch.sql.rows import file_of, owner_bytes, pieces_of, plain_text
from matryo.batch.sql.tables import files, pieces
from matryo.batch.uploads import PIECE_BYTES
from matryo.core.errors import (
    FileTooLarge,
    MatryoError,
    StorageQuotaReached,
    StorageUnavailable,
)

log = logging.getLogger("matryo")


class SqlUpload:
    """An upload; see `matryo.batch.uploads.Upload`.

    Args:
        file_id: of a row that is not ready.
        owner: whose file the upload becomes.
        expires_after_s: life of the file; None for the server's own.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        limits: Limits,
        *,
        file_id: str,
        owner: str,
        expires_after_s: int | None,
    ) -> None:
        self._database, self._blobs, self._limits = database, blobs, limits
        self._id, self._owner = file_id, owner
        self._buffer = bytearray()
        self._n_pieces = 0
        self._is_over = False
        self.n_bytes = 0
        self.expires_after_s = expires_after_s

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        self._check_open()
        view = memoryview(data).cast("B")
        if self.n_bytes + len(view) > self._limits.max_file_bytes:
            raise FileTooLarge(max_bytes=self._limits.max_file_bytes)
        while len(view):
            room = PIECE_BYTES - len(self._buffer)
            self._buffer += view[:room]
            self.n_bytes += len(view[:room])
            view = view[room:]
            if len(self._buffer) == PIECE_BYTES:
                self._store_piece()

    def commit(self) -> File:
        """The file, which is there from now on."""
        self._check_open()
        if self._buffer:
            self._store_piece()
        values: dict[str, object] = {"is_ready": True}
        if self.expires_after_s is not None:
            values["expires_at"] = files.c.created_at + self.expires_after_s
        with self._database.writing() as transaction:
            self._touch(transaction, values)
            row = transaction.connection.execute(select(files).where(files.c.id == self._id)).one()
            found = file_of(row, pieces_of(transaction, self._id))
        self._is_over = True
        return found

    def abort(self) -> None:
        """Remove what was written."""
        if self._is_over:
            return
        self._is_over = True
        self._buffer.clear()
        try:
            remove_files(self._database, self._blobs, lambda _: [self._id])
        except MatryoError as exc:
            log.warning("an upload was not removed, and will be swept: %s", exc)

    def _store_piece(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        key = f"files/{self._id}/{self._n_pieces}"
        with self._database.writing() as transaction:
            self._database.lock_owner(transaction, self._owner)
            check_bytes(transaction, self._limits, self._owner, len(data))
            self._touch(transaction, {"n_bytes": files.c.n_bytes + len(data)})
            transaction.connection.execute(
                insert(pieces).values(
                    holder=self._id,
                    kind="upload",
                    number=self._n_pieces,
                    key=key,
                    n_bytes=len(data),
                )
            )
        self._blobs.put(key, data)
        self._n_pieces += 1

    def _touch(self, transaction: Transaction, values: dict[str, object]) -> None:
        changed = transaction.connection.execute(
            update(files)
            .where((files.c.id == self._id) & ~files.c.is_ready)
            .values(touched_at=transaction.now, **values)
        )
        if changed.rowcount != 1:  # swept, after an hour without a byte
            raise StorageUnavailable

    def _check_open(self) -> None:
        if self._is_over:
            raise StorageUnavailable


def begin_upload(
    database: Database,
    blobs: Blobs,
    limits: Limits,
    *,
    owner: str,
    filename: str,
    purpose: Purpose,
    expires_after_s: int | None,
) -> SqlUpload:
    """An upload of a new file; see `Storage.add_file`."""
    file_id = new_file_id()
    with database.writing() as transaction:
        database.lock_owner(transaction, owner)
        is_there = ~files.c.is_deleted & (files.c.expires_at > transaction.moment)
        used = transaction.connection.execute(
            select(func.count()).where((files.c.owner == owner) & is_there)
        ).scalar_one()
        if used >= limits.key_files:
            raise StorageQuotaReached(
                what="files", key=owner, limit=limits.key_files, used=used, requested=1
            )
        check_bytes(transaction, limits, owner, 1)
        transaction.connection.execute(
            insert(files).values(
                id=file_id,
                owner=owner,
                filename=plain_text(filename),
                purpose=purpose,
                n_bytes=0,
                created_at=transaction.moment,
                expires_at=transaction.moment + limits.retention_s,
                is_ready=False,
                is_deleted=False,
                touched_at=transaction.now,
            )
        )
    return SqlUpload(
        database, blobs, limits, file_id=file_id, owner=owner, expires_after_s=expires_after_s
    )


def check_bytes(transaction: Transaction, limits: Limits, owner: str, n_bytes: int) -> None:
    """Refuse bytes that an owner has no room for; call with the owner locked.

    Raises:
        StorageQuotaReached: the owner has no room.
    """
    used = owner_bytes(transaction, owner)
    if used + n_bytes > limits.key_bytes:
        raise StorageQuotaReached(
            what="bytes of files",
            key=owner,
            limit=limits.key_bytes,
            used=used,
            requested=n_bytes,
        )


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


def remove_files(
    database: Database, blobs: Blobs, choose: Callable[[Transaction], list[str]]
) -> int:
    """Remove files, their rows first; return their number.

    Args:
        database: has the rows.
        blobs: has the bytes. What a crash leaves there is garbage for `Storage.sweep`.
        choose: ids of the files.
    """
    with database.writing() as transaction:
        ids = choose(transaction)
        of_files = pieces.c.holder.in_(ids)
        keys = transaction.connection.execute(select(pieces.c.key).where(of_files)).scalars().all()
        transaction.connection.execute(delete(pieces).where(of_files))
        transaction.connection.execute(delete(files).where(files.c.id.in_(ids)))
    blobs.delete(keys)
    return len(ids)
