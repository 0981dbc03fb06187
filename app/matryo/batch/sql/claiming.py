"""Which batch is due, and who gets it?"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Row, case, func, select, update

from matryo.batch.blobs import Blobs
from matryo.batch.objects import Limits, LineError
from matryo.batch.sql.claims import SqlClaim
from matryo.batch.sql.database import Database, Transaction
from matryo.batch.sql.ending import end
from matryo.batch.sql.rows import file_of, pieces_of
from matryo.batch.sql.tables import batches, files

log = logging.getLogger("matryo")


def claim_due(database: Database, blobs: Blobs, limits: Limits, *, ending: bool) -> SqlClaim | None:
    """The claim of the batch that is due; see `Storage.claim`."""
    while True:
        with database.writing() as transaction:
            row = _claim_row(transaction, limits, ending=ending)
            if row is None:
                return None
            found = transaction.connection.execute(
                select(files).where(files.c.id == row.input_file_id)
            ).one_or_none()
            if found is not None:
                input_file = file_of(found, pieces_of(transaction, found.id))
                break
            # A file stays until its batches have ended. Somebody changed the tables.
            log.error("%s fails: the database lacks its input %s", row.id, row.input_file_id)
            message = f"The input file {row.input_file_id} is missing. Upload it again."
            lost = LineError("missing_input_file", message, param="input_file_id")
            end(transaction, limits, row, "failed", [lost])
    if row.epoch > 1:
        log.info("claimed %s again, after %d lines", row.id, row.n_lines)
    return SqlClaim(database, blobs, limits, row=row, input_file=input_file)


def _claim_row(transaction: Transaction, limits: Limits, *, ending: bool) -> Row[Any] | None:
    """The row of the batch that is due, with a new epoch and a new lease; None if none is due."""
    is_ending = (batches.c.status == "cancelling") | (batches.c.expires_at <= transaction.moment)
    # Round robin: the owner whose last claim is longest ago, or who never had one, is next.
    others = batches.alias()
    last_claim = (
        select(func.coalesce(func.max(others.c.claimed_at), 0))
        .where(others.c.owner == batches.c.owner)
        .scalar_subquery()
    )
    due = (
        select(batches.c.id)
        .where(batches.c.ended_at.is_(None) & (batches.c.lease_until <= transaction.now))
        .order_by(case((is_ending, 0), else_=1), last_claim, batches.c.seq)
        .limit(1)
        .with_for_update(of=batches, skip_locked=True)
    )
    batch_id = transaction.connection.execute(
        due.where(is_ending) if ending else due
    ).scalar_one_or_none()
    if batch_id is None:
        return None
    claimed = (
        update(batches)
        .where(batches.c.id == batch_id)
        .values(
            epoch=batches.c.epoch + 1,
            lease_until=transaction.now + limits.lease_s,
            claimed_at=transaction.now,
        )
        .returning(*batches.c)
    )
    return transaction.connection.execute(claimed).one()
