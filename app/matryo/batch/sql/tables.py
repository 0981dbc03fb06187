"""The tables of the Batch API. Their version is in the table `matryo_meta`.

A row of `files` is there before the first byte of its file, and goes before the last one: bytes
without a row are garbage. Moments are seconds since 1970 UTC, those of objects whole ones.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

VERSION = "1"

METADATA = MetaData()

# SQLite numbers rows by itself only where the key is an INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")

# `version` of the tables, and `store`, the id that the store of bytes holds too.
meta = Table(
    "matryo_meta",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

files = Table(
    "matryo_files",
    METADATA,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),  # the order of lists
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("is_ready", Boolean, nullable=False),  # false while the upload goes on
    Column("is_deleted", Boolean, nullable=False),  # gone for its owner, and a batch still reads
    Column("touched_at", Double, nullable=False),  # when the upload grew last
    Index("matryo_files_by_owner", "owner", "seq"),
    Index("matryo_files_by_expiry", "expires_at"),
    sqlite_autoincrement=True,  # the number of a removed row never comes again
)

batches = Table(
    "matryo_batches",
    METADATA,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),  # the order of lists
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("caller_weight", Double, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("model", Text),
    Column("input_file_id", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("errors", Text, nullable=False),  # JSON
    Column("created_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("ended_at", BigInteger),  # any of the four above that end a batch
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("n_tokens", BigInteger, nullable=False),
    Column("metadata", Text),  # JSON
    Column("output_expires_after_s", BigInteger),
    Column("n_lines", BigInteger, nullable=False),  # of the input, done and committed
    Column("n_bytes", BigInteger, nullable=False),
    Column("n_windows", BigInteger, nullable=False),
    Column("n_result_bytes", BigInteger, nullable=False),  # of pieces that are no file yet
    Column("epoch", BigInteger, nullable=False),  # number of the last claim
    Column("lease_until", Double, nullable=False),  # the batch is free from this moment
    Column("claimed_at", Double),
    Index("matryo_batches_by_owner", "owner", "seq"),
    Index("matryo_batches_by_claim", "owner", "claimed_at"),
    Index("matryo_batches_by_end", "ended_at"),
    Index("matryo_batches_by_input", "input_file_id"),
    sqlite_autoincrement=True,
)

# The bytes of files, and of the results of a batch that has not ended: `holder` is the id of the
# file or of the batch.
pieces = Table(
    "matryo_pieces",
    METADATA,
    Column("holder", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("key", Text, nullable=False, unique=True),
    Column("n_bytes", BigInteger, nullable=False),
)
