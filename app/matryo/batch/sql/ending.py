"""How does a batch end, and how do its results become files?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Row, func, insert, select, update

from matryo.batch.objects import Ending, Limits, LineError
from matryo.batch.sql.database import Transaction
from matryo.batch.sql.rows import errors_text
from matryo.batch.sql.tables import batches, files, pieces
from matryo.batch.sql.uploads import new_file_id


def end(
    transaction: Transaction,
    limits: Limits,
    row: Row[Any],
    status: Ending | Literal["failed"],
    errors: Sequence[LineError] = (),
) -> Row[Any]:
    """End a batch, with the results that were committed; return its new row.

    The pieces that windows wrote become the pieces of files. No byte is copied.

    Args:
        transaction: holds the row.
        limits: say how long the files live.
        row: a batch that has not ended.
        status: how the batch ends.
        errors: why it failed.
    """
    values: dict[str, Any] = {
        "status": status,
        f"{status}_at": transaction.moment,
        "ended_at": transaction.moment,
        "errors": errors_text(errors),
        "output_file_id": _file(transaction, limits, row, "output"),
        "error_file_id": _file(transaction, limits, row, "error"),
        "n_result_bytes": 0,
    }
    if status in ("completed", "expired"):
        values["finalizing_at"] = transaction.moment
    ended = update(batches).where(batches.c.seq == row.seq).values(values).returning(*batches.c)
    return transaction.connection.execute(ended).one()


def _file(
    transaction: Transaction, limits: Limits, row: Row[Any], kind: Literal["output", "error"]
) -> str | None:
    """Make a file of a batch's results; return its id, or None if there are no results."""
    results = (pieces.c.holder == row.id) & (pieces.c.kind == kind)
    summed = select(func.sum(pieces.c.n_bytes)).where(results)
    n_bytes = transaction.connection.execute(summed).scalar_one()
    if n_bytes is None:
        return None
    file_id = new_file_id()
    transaction.connection.execute(
        insert(files).values(
            id=file_id,
            owner=row.owner,
            filename=f"{row.id}_{kind}.jsonl",
            purpose="batch_output",
            n_bytes=int(n_bytes),
            created_at=transaction.moment,
            expires_at=transaction.moment + (row.output_expires_after_s or limits.retention_s),
            is_ready=True,
            is_deleted=False,
            touched_at=transaction.now,
        )
    )
    transaction.connection.execute(update(pieces).where(results).values(holder=file_id))
    return file_id
