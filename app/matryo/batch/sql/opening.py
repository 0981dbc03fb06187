"""Makes a storage ready: the tables, the store, and the proof that the two belong together."""

from __future__ import annotations

import secrets

from sqlalchemy import func, insert, select

from matryo.batch.blobs import MARK, Blobs
from matryo.batch.blobs.local import LocalBlobs
from matryo.batch.objects import Limits
from matryo.batch.sql.database import Database, postgresql_url, sqlite_url
from matryo.batch.sql.storage import SqlStorage
from matryo.batch.sql.tables import VERSION, files, meta
from matryo.core.errors import (
    MatryoError,
    SettingsInvalid,
    StorageDamaged,
    StorageFull,
    StorageUnavailable,
)
from matryo.core.settings import Settings
from matryo.store.files import make_folder

_DAY_S = 86_400
_REMEDY = (
    "Bring together the database and the store that belong together, or name an empty database "
    "and an empty store."
)


def open_sql_storage(settings: Settings) -> SqlStorage:
    """The storage that the settings name; see `matryo.batch.storage.open_storage`."""
    folder = settings.batch_folder
    if not (settings.batch_database and settings.batch_store):
        _make(settings)
    if settings.batch_database:
        try:
            url = postgresql_url(settings.batch_database)
        except ValueError as exc:
            raise SettingsInvalid(
                "MATRYO_BATCH_DATABASE is no URL. Write postgresql://USER:PASSWORD@HOST/NAME, with "
                "% codes for signs such as @ in the password."
            ) from exc
    else:
        url = sqlite_url(folder / "batches.sqlite3")
    shown = url.render_as_string(hide_password=True)
    database, blobs = Database(url), _blobs(settings)
    try:
        _join(database, blobs, shown, settings.batch_store or str(folder))
    except (StorageUnavailable, StorageFull, StorageDamaged) as exc:
        database.close()
        raise SettingsInvalid(
            f"the storage of the Batch API cannot be used: {_cause(exc)}. Its database is {shown}, "
            f"and its bytes are in {settings.batch_store or folder}."
        ) from exc
    except SettingsInvalid:
        database.close()
        raise
    return SqlStorage(database, blobs, limits_of(settings))


def limits_of(settings: Settings) -> Limits:
    """What the settings let each owner store."""
    return Limits(
        max_file_bytes=settings.batch_max_file_bytes,
        key_bytes=settings.batch_key_bytes,
        key_files=settings.batch_key_files,
        key_batches=settings.batch_key_batches,
        retention_s=max(1, int(settings.batch_retention_days * _DAY_S)),
        lease_s=settings.batch_lease_s,
    )


def _make(settings: Settings) -> None:
    """Make the folder. Only this user may read what callers sent."""
    folder = settings.batch_folder
    try:
        is_new = not folder.is_dir()
        make_folder(folder)
        if is_new:
            folder.chmod(0o700)
    except OSError as exc:
        raise SettingsInvalid(
            f"the folder of the Batch API, {folder}, cannot be made: {exc.strerror}. Set "
            "MATRYO_BATCH_DIR to a folder that this user may write."
        ) from exc


def _blobs(settings: Settings) -> Blobs:
    if not settings.batch_store:
        return LocalBlobs(settings.batch_folder)
    from matryo.batch.blobs.s3 import S3Blobs

    return S3Blobs(settings.batch_store)


def _join(database: Database, blobs: Blobs, database_name: str, store_name: str) -> None:
    """Make what is missing, and check that the store is the database's own.

    Another database's store must not be used: a sweep removes all bytes that the database does
    not know.
    """
    database.create()
    with database.writing() as transaction:
        execute = transaction.connection.execute
        database.lock_owner(transaction, "")  # another process may open the same database now
        rows = dict(execute(select(meta.c.name, meta.c.value)).all())
        if not rows:
            rows = {"version": VERSION, "store": secrets.token_hex(16)}
            execute(insert(meta), [{"name": name, "value": value} for name, value in rows.items()])
        has_files = execute(select(func.count()).select_from(files)).scalar_one() > 0
    if rows.get("version") != VERSION:
        raise SettingsInvalid(
            f"{database_name} has tables of version {rows.get('version')}, and this Matryo knows "
            f"version {VERSION}. Use the Matryo that made them, or another database."
        )
    own = rows["store"].encode()
    length = blobs.size(MARK)
    if length is None:
        if has_files:
            raise SettingsInvalid(
                f"{database_name} knows files, but {store_name} is not the store of their bytes. "
                f"{_REMEDY}"
            )
        blobs.put(MARK, own)
    elif blobs.get(MARK, 0, length) != own:
        raise SettingsInvalid(f"{store_name} belongs to another database. {_REMEDY}")


def _cause(exc: MatryoError) -> str:
    """What the operating system, the database or the store said."""
    cause = exc.__cause__
    text = str(getattr(cause, "orig", None) or cause or exc).strip()
    return text.splitlines()[0] if text else type(cause).__name__
