"""What may the holder of a batch do, and how is a holder that lost the batch kept out?

Each claim of a batch has an epoch, a number that grows with every claim. Every change by a holder
names its epoch: a holder that was taken over changes no row, and its bytes never get a row.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, insert, select, update

from matryo.batch.blobs import Blobs
from matryo.batch.objects import (
    ENDED,
    Batch,
    Ending,
    File,
    LeaseLost,
    Limits,
    LineError,
    WindowResult,
)
from matryo.batch.sql.database import Database, Transaction
from matryo.batch.sql.ending import end
from matryo.batch.sql.rows import batch_of, plain_text, progress_of
from matryo.batch.sql.tables import batches, pieces
from matryo.batch.sql.uploads import check_bytes
from matryo.core.errors import MatryoError, StorageUnavailable


class SqlClaim:
    """A claim; see `matryo.batch.claims.Claim`.

    Args:
        row: the batch, just claimed.
        input_file: the file that the batch reads.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        limits: Limits,
        *,
        row: Row[Any],
        input_file: File,
    ) -> None:
        self._database, self._blobs, self._limits = database, blobs, limits
        self._is_over = False
        self._n_windows: int = row.n_windows  # that the caller knows to be committed
        self.epoch: int = row.epoch
        self.input = input_file
        self._see(row)

    def renew(self) -> Batch:
        """The newest state of the batch, whose lease begins anew."""
        with self._working() as transaction:
            row = self._change(transaction, {})
        return self._see(row)

    def reject(self, errors: Sequence[LineError]) -> Batch:
        """The batch, now failed, with the results that were committed."""
        with self._working() as transaction:
            row = self._row(transaction)
            if row.status in ("validating", "in_progress"):
                row = end(transaction, self._limits, row, "failed", errors)
        return self._see(row)

    def begin(self, total: int, model: str | None) -> Batch:
        """The batch, now in progress."""
        with self._working() as transaction:
            row = self._row(transaction)
            if row.status == "validating":
                row = self._change(
                    transaction,
                    {
                        "status": "in_progress",
                        "in_progress_at": transaction.moment,
                        "total": total,
                        "model": model and plain_text(model),
                    },
                )
        return self._see(row)

    def commit(self, window: WindowResult) -> Batch:
        """The batch with a window's results, which are part of its files for good."""
        number = self._n_windows
        # No two tries share a name: a late commit of the first must find its own bytes.
        stem = f"batches/{self.batch.id}/{self.epoch}-{number}-{secrets.token_hex(4)}"
        parts = {"output": window.output, "error": window.errors}
        keys = {kind: f"{stem}-{kind}" for kind, data in parts.items() if data}
        try:
            for kind, key in keys.items():
                self._blobs.put(key, parts[kind])
            lengths = {key: len(parts[kind]) for kind, key in keys.items()}
            row, is_recorded = self._record(window, number, lengths)
        except StorageUnavailable:  # the database may have done it, and lost its answer
            raise
        except (MatryoError, LeaseLost):
            self._discard(keys.values())
            raise
        if not is_recorded:
            self._discard(keys.values())
        self._n_windows = number + 1
        return self._see(row)

    def finish(self, status: Ending) -> Batch:
        """The batch, now ended, with its result files."""
        with self._working() as transaction:
            row = self._row(transaction)
            if row.status not in ENDED:
                how = "cancelled" if row.status == "cancelling" else status
                row = end(transaction, self._limits, row, how)
        return self._see(row)

    def release(self, delay_s: float = 0) -> None:
        """Let another process claim the batch, or this one again, after `delay_s` seconds."""
        with self._working() as transaction:
            self._change(transaction, {"lease_until": transaction.now + delay_s})
        self._is_over = True

    # --- steps

    @contextlib.contextmanager
    def _working(self) -> Generator[Transaction, None, None]:
        if self._is_over:
            raise LeaseLost
        with self._database.writing() as transaction:
            yield transaction

    def _mine(self) -> ColumnElement[bool]:
        return (batches.c.id == self.batch.id) & (batches.c.epoch == self.epoch)

    def _row(self, transaction: Transaction) -> Row[Any]:
        """The row of the batch, which nobody else changes until the transaction ends."""
        query = select(batches).where(self._mine()).with_for_update()
        row = transaction.connection.execute(query).one_or_none()
        if row is None:
            raise self._lost()
        return row

    def _change(self, transaction: Transaction, values: dict[str, Any]) -> Row[Any]:
        """Change the row, and begin the lease anew; return the new row."""
        lease = {"lease_until": transaction.now + self._limits.lease_s}
        query = update(batches).where(self._mine()).values(lease | values).returning(*batches.c)
        row = transaction.connection.execute(query).one_or_none()
        if row is None:
            raise self._lost()
        return row

    def _lost(self) -> LeaseLost:
        self._is_over = True
        return LeaseLost()

    def _see(self, row: Row[Any]) -> Batch:
        self.batch, self.progress = batch_of(row), progress_of(row)
        self._is_over = self._is_over or self.batch.status in ENDED
        return self.batch

    def _record(
        self, window: WindowResult, number: int, lengths: dict[str, int]
    ) -> tuple[Row[Any], bool]:
        """Have the window's bytes be part of the batch, in one transaction.

        Returns:
            The batch's row, and whether these bytes are part of the batch: not if an earlier try
            was done although the database lost its answer.
        """
        n_bytes = sum(lengths.values())
        columns = batches.c
        with self._working() as transaction:
            self._database.lock_owner(transaction, self.batch.owner)
            row = self._row(transaction)
            if row.n_windows != number:
                return row, False
            # What ends a batch must have room, or the batch would never end.
            if row.status == "in_progress" and row.expires_at > transaction.moment:
                check_bytes(transaction, self._limits, self.batch.owner, n_bytes)
            row = self._change(
                transaction,
                {
                    "n_lines": columns.n_lines + window.n_lines,
                    "n_bytes": columns.n_bytes + window.n_bytes,
                    "n_windows": columns.n_windows + 1,
                    "n_result_bytes": columns.n_result_bytes + n_bytes,
                    "completed": columns.completed + window.n_completed,
                    "failed": columns.failed + window.n_failed,
                    "n_tokens": columns.n_tokens + window.n_tokens,
                },
            )
            if lengths:
                transaction.connection.execute(
                    insert(pieces),
                    [
                        {
                            "holder": self.batch.id,
                            "kind": key.rpartition("-")[2],
                            "number": number,
                            "key": key,
                            "n_bytes": length,
                        }
                        for key, length in lengths.items()
                    ],
                )
        return row, True

    def _discard(self, keys: Iterable[str]) -> None:
        with contextlib.suppress(MatryoError):  # the sweep removes what is left
            self._blobs.delete(keys)
