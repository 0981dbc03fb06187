"""Transactions on SQLite or PostgreSQL, and what errors of the database mean."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from matryo.batch.sql.tables import METADATA
from matryo.core.errors import StorageDamaged, StorageFull, StorageUnavailable

log = logging.getLogger("matryo")

_WAIT_S = 30  # for another writer; transactions take milliseconds
_CONNECT_S = 5
_DISK_FULL = "53100"  # PostgreSQL's code
_LOCK = 0x6D61_7472_796F  # "matryo", of PostgreSQL's advisory locks on the tables


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction that is open.

    Attributes:
        connection: for statements.
        now: seconds since 1970 UTC by the clock that all holders of leases share: PostgreSQL's,
            or this machine's.
    """

    connection: Connection
    now: float

    @property
    def moment(self) -> int:
        """The time in whole seconds."""
        return int(self.now)


class Database:
    """The database. Any thread may call.

    Args:
        url: SQLAlchemy's URL of a SQLite file or of PostgreSQL.
        clock: seconds since 1970 UTC, in place of the shared clock.
    """

    def __init__(self, url: URL, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self.is_postgresql = url.get_backend_name() == "postgresql"
        self.engine = _postgresql(url) if self.is_postgresql else _sqlite(url)

    @contextlib.contextmanager
    def writing(self) -> Generator[Transaction, None, None]:
        """A transaction that may change rows; committed at the end of the block.

        Writers of SQLite wait for each other. On PostgreSQL they run side by side: lock a row, or
        an owner, where that matters.

        Raises:
            StorageFull: the database has no room.
            StorageUnavailable: the database does not answer. If `commit` itself failed, the
                transaction may be done all the same.
            StorageDamaged: the database is no longer as the tables say.
        """
        with _translated(), self.engine.connect() as connection, connection.begin():
            yield Transaction(connection, self._begin(connection))

    @contextlib.contextmanager
    def reading(self) -> Generator[Transaction, None, None]:
        """A transaction that changes nothing; errors as of `writing`."""
        with _translated(), self.engine.connect() as bare:
            connection = bare.execution_options(matryo_reads=True)
            with connection.begin():
                yield Transaction(connection, self._begin(connection))

    def _begin(self, connection: Connection) -> float:
        """Bound the transaction's time on PostgreSQL; return the time."""
        if not self.is_postgresql:
            return (self._clock or time.time)()
        # A process that stops in the middle of a transaction must not hold the others for ever.
        bounds = [
            func.set_config(f"{what}_timeout", f"{_WAIT_S}s", True)  # noqa: FBT003 - PostgreSQL's argument is_local has no name
            for what in ("lock", "statement", "idle_in_transaction_session")
        ]
        moment = func.extract("epoch", func.clock_timestamp())
        row = connection.execute(select(moment, *bounds)).one()
        return self._clock() if self._clock else float(row[0])

    def lock_owner(self, transaction: Transaction, owner: str) -> None:
        """Have the transaction be the only one that adds to what an owner has."""
        if self.is_postgresql:  # SQLite has one writer at a time
            number = func.hashtextextended(owner, _LOCK)
            transaction.connection.execute(select(func.pg_advisory_xact_lock(number)))

    def create(self) -> None:
        """Make the tables that are missing; errors as of `writing`."""
        with self.writing() as transaction:
            if self.is_postgresql:
                transaction.connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            METADATA.create_all(transaction.connection)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()


def sqlite_url(path: Path) -> URL:
    """The URL of a SQLite database at a path."""
    return URL.create("sqlite", database=str(path))


def postgresql_url(url: str) -> URL:
    """The URL of a PostgreSQL database, for the driver psycopg.

    Raises:
        ValueError: the text is no URL.
    """
    try:
        return make_url(url).set(drivername="postgresql+psycopg")
    except ArgumentError as exc:
        raise ValueError("is no URL") from exc


def _postgresql(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        pool_pre_ping=True,  # a connection may be dead since its last use
        pool_recycle=1800,
        pool_timeout=_WAIT_S,
        connect_args={
            "connect_timeout": _CONNECT_S,
            "keepalives_idle": _WAIT_S,
            "tcp_user_timeout": 1000 * _WAIT_S,
            "prepare_threshold": None,  # poolers such as PgBouncer lose prepared statements
            "application_name": "matryo",
        },
    )
    # Each transaction locks what it must; more would only make transactions fail.
    return engine.execution_options(isolation_level="READ COMMITTED")


def _sqlite(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        pool_timeout=_WAIT_S,
        connect_args={"timeout": _WAIT_S, "isolation_level": None, "check_same_thread": False},
    )

    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # What was answered must outlive a loss of power, so that each commit is synced.
        connection.execute("PRAGMA synchronous = FULL")

    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("matryo_reads")
        # A transaction that begins as a reader could not wait when it first writes.
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    return engine


@contextlib.contextmanager
def _translated() -> Generator[None, None, None]:
    """Turn errors of the database into those of the storage."""
    try:
        yield
    except PoolTimeout as exc:
        raise StorageUnavailable from exc
    except DBAPIError as exc:
        # The message of `exc` itself shows the statement, with what callers sent.
        log.warning("batch database: %s", str(exc.orig).strip())
        raise _meaning(exc) from exc


def _meaning(exc: DBAPIError) -> StorageFull | StorageUnavailable | StorageDamaged:
    cause = exc.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageFull()
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    elif getattr(cause, "sqlstate", None) == _DISK_FULL:
        return StorageFull()
    else:
        damaged = isinstance(exc, ProgrammingError)  # a table, a column or a right is missing
    damaged = damaged or isinstance(exc, IntegrityError)
    if damaged:
        return StorageDamaged(f"The database of the Batch API is not as it was made: {cause}")
    return StorageUnavailable()
