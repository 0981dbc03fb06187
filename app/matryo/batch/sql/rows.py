"""Rows of the tables as objects, and questions that several parts of the storage ask."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select

from matryo.batch.objects import Batch, Counts, File, LineError, Piece, Progress
from matryo.batch.sql.database import Transaction
from matryo.batch.sql.tables import batches, files, pieces
from matryo.core.errors import UnknownBatch, UnknownFile

_FILE_ID = re.compile(r"file-[0-9A-Za-z]{1,64}")
_BATCH_ID = re.compile(r"batch_[0-9A-Za-z]{1,64}")
_BATCH_COLUMNS = {field.name for field in dataclasses.fields(Batch)} - {
    "counts",
    "errors",
    "metadata",
}


def plain_text(text: str) -> str:
    """A text that every database takes: without NUL and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def file_of(row: Row[Any], parts: Iterable[Piece] = ()) -> File:
    """The file of a row of `files`."""
    return File(
        id=row.id,
        owner=row.owner,
        filename=row.filename,
        purpose=row.purpose,
        n_bytes=row.n_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        pieces=tuple(parts),
    )


def batch_of(row: Row[Any]) -> Batch:
    """The batch of a row of `batches`."""
    values = {name: getattr(row, name) for name in _BATCH_COLUMNS}
    return Batch(
        **values,
        counts=Counts(row.total, row.completed, row.failed),
        errors=tuple(LineError(**error) for error in json.loads(row.errors)),
        metadata=None if row.metadata is None else json.loads(row.metadata),
    )


def progress_of(row: Row[Any]) -> Progress:
    """The progress of a row of `batches`."""
    return Progress(row.n_lines, row.n_bytes, row.n_windows)


def errors_text(errors: Iterable[LineError]) -> str:
    """The errors of an input as the column `errors` holds them."""
    return json.dumps([dataclasses.asdict(error) for error in errors])


def seen(transaction: Transaction, owner: str) -> ColumnElement[bool]:
    """The files that an owner sees now."""
    return (
        (files.c.owner == owner)
        & files.c.is_ready
        & ~files.c.is_deleted
        & (files.c.expires_at > transaction.moment)
    )


def seen_file(transaction: Transaction, owner: str, file_id: str, param: str = "id") -> Row[Any]:
    """The row of a file that an owner sees.

    Args:
        transaction: an open one.
        owner: who asks.
        file_id: as the owner wrote it.
        param: the field of the request that holds the id.

    Raises:
        UnknownFile: the owner has no such file.
    """
    # Other texts are no ids, and a database may refuse to compare them.
    if _FILE_ID.fullmatch(file_id):
        condition = seen(transaction, owner) & (files.c.id == file_id)
        row = transaction.connection.execute(select(files).where(condition)).one_or_none()
        if row is not None:
            return row
    raise UnknownFile(plain_text(file_id), param=param)


def owned_batch(
    transaction: Transaction, owner: str, batch_id: str, param: str | None = None
) -> Row[Any]:
    """The row of a batch of an owner.

    Raises:
        UnknownBatch: the owner has no such batch.
    """
    if _BATCH_ID.fullmatch(batch_id):
        condition = (batches.c.owner == owner) & (batches.c.id == batch_id)
        row = transaction.connection.execute(select(batches).where(condition)).one_or_none()
        if row is not None:
            return row
    raise UnknownBatch(plain_text(batch_id), param=param)


def pieces_of(transaction: Transaction, holder: str) -> list[Piece]:
    """The pieces of a file, in order."""
    query = (
        select(pieces.c.key, pieces.c.n_bytes)
        .where(pieces.c.holder == holder)
        .order_by(pieces.c.number)
    )
    return [Piece(key, n_bytes) for key, n_bytes in transaction.connection.execute(query)]


def owner_bytes(transaction: Transaction, owner: str) -> int:
    """Bytes of all files of an owner, of uploads, and of results that are no file yet."""
    of_files = select(func.coalesce(func.sum(files.c.n_bytes), 0)).where(files.c.owner == owner)
    of_results = select(func.coalesce(func.sum(batches.c.n_result_bytes), 0)).where(
        batches.c.owner == owner
    )
    return sum(
        int(transaction.connection.execute(query).scalar_one()) for query in (of_files, of_results)
    )


def is_read(file_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a batch that has not ended reads a file."""
    return (
        select(batches.c.seq)
        .where((batches.c.input_file_id == file_id) & batches.c.ended_at.is_(None))
        .exists()
    )
