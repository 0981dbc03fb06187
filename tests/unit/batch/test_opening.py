"""Opening a storage: what is made, and what is refused before it can do harm."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matryo.batch.sql.storage import SqlStorage
from matryo.batch.storage import open_storage
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from tests.storages import add_file, content


class Opener:
    """Opens storages in one home folder, and closes them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.opened: list[SqlStorage] = []

    def __call__(self, **settings: Any) -> SqlStorage:
        """The storage that the settings name."""
        storage = open_storage(load_settings(None, **{"batch": True, "home": self.home} | settings))
        assert isinstance(storage, SqlStorage)
        self.opened.append(storage)
        return storage


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    """What opens storages."""
    made = Opener(tmp_path / "home")
    yield made
    for storage in made.opened:
        storage.close()


def test_a_storage_outlives_its_process(opener: Opener) -> None:
    """What is stored is there when the storage is opened again."""
    file = add_file(opener(), b"abc")
    again = opener()
    assert content(again, again.file("ann", file.id)) == b"abc"
    folder = opener.home / "batches"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # callers' texts
    assert (folder / "batches.sqlite3").is_file()


def test_a_folder_of_its_own(opener: Opener, tmp_path: Path) -> None:
    """MATRYO_BATCH_DIR holds database and bytes, and MATRYO_HOME nothing."""
    folder = tmp_path / "deep" / "folder"
    add_file(opener(batch_dir=folder))
    assert sorted(path.name for path in folder.iterdir() if "-" not in path.name) == [
        "aside",
        "batches.sqlite3",
        "bytes",
    ]
    assert not opener.home.exists()


def test_limits_are_the_settings(opener: Opener) -> None:
    """Every limit of the settings holds in the storage."""
    storage = opener(batch_max_file_bytes=2000, batch_retention_days=0.5)
    file = add_file(storage)
    assert file.expires_at - file.created_at == 43_200
    assert storage._limits.max_file_bytes == 2000


def test_another_databases_store_is_refused(opener: Opener) -> None:
    """A store whose database was lost is not used: a sweep would remove every byte."""
    storage = opener()
    file = add_file(storage)
    storage.close()
    for path in (opener.home / "batches").glob("batches.sqlite3*"):
        path.unlink()
    with pytest.raises(SettingsInvalid, match="belongs to another database"):
        opener()
    assert (opener.home / "batches" / "bytes" / file.pieces[0].key).exists()


def test_another_store_is_refused(opener: Opener) -> None:
    """A database that knows files is not used with a store that is not theirs."""
    storage = opener()
    add_file(storage)
    (opener.home / "batches" / "bytes" / "storage-id").unlink()
    with pytest.raises(SettingsInvalid, match=r"knows files, but .* is not the store"):
        opener()


def test_a_start_that_was_killed(opener: Opener) -> None:
    """A database without a file gets its store's mark if a crash kept it from there."""
    opener()
    (opener.home / "batches" / "bytes" / "storage-id").unlink()
    add_file(opener())
    add_file(opener())


def test_tables_of_another_version(opener: Opener) -> None:
    """Tables of another version are refused, with both versions."""
    opener().close()
    path = opener.home / "batches" / "batches.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("UPDATE matryo_meta SET value = '7' WHERE name = 'version'")
    connection.commit()
    connection.close()
    with pytest.raises(SettingsInvalid, match="tables of version 7, and this Matryo knows version"):
        opener()


def test_a_database_that_is_none(opener: Opener) -> None:
    """A file that is no database is refused, and left as it is."""
    path = opener.home / "batches" / "batches.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, but long enough to be read as a header" * 100)
    with pytest.raises(SettingsInvalid, match=r"cannot be used: file is not a database"):
        opener()
    assert path.read_bytes().startswith(b"no database")


def test_a_folder_that_cannot_be_made(opener: Opener, tmp_path: Path) -> None:
    """A folder below a file is refused with the setting to change."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsInvalid, match="MATRYO_BATCH_DIR"):
        opener(batch_dir=tmp_path / "file" / "batches")


def test_a_database_that_does_not_answer(opener: Opener) -> None:
    """A database that cannot be reached is refused by name, without its password."""
    url = "postgresql://ann:secret@127.0.0.1:1/matryo"
    with pytest.raises(SettingsInvalid) as caught:
        opener(batch_database=url)
    assert "postgresql+psycopg://ann:***@127.0.0.1:1/matryo" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("sqlalchemy", {}),
        ("psycopg", {"batch_database": "postgresql://h/d"}),
        ("obstore", {"batch_store": "s3://bucket/x"}),
    ],
)
def test_a_missing_package(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, package: str, settings: dict[str, str]
) -> None:
    """A missing package is refused by name, with the command that installs it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(SettingsInvalid, match=rf"{package} is not .* 'matryo\[batch\]'"):
        opener(**settings)


def test_nothing_is_imported_before() -> None:
    """The names that doors and runners import bring none of the extra's packages."""
    code = (
        "import sys, matryo.batch.storage, matryo.batch.uploads, matryo.batch.claims;"
        "print(sorted({'sqlalchemy', 'psycopg', 'obstore'} & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_database", "mysql://h/d"),
        ("batch_database", "sqlite:///x"),
        ("batch_store", "gs://bucket"),
        ("batch_store", "s3://"),
        ("batch_store", "s3://b?x=1"),
    ],
)
def test_settings_that_name_something_else(name: str, value: str) -> None:
    """Only PostgreSQL and S3 can be named, and the message says how."""
    with pytest.raises(SettingsInvalid, match=r"postgresql://USER|s3://BUCKET"):
        load_settings(None, **{name: value})


def test_processes_that_start_together(tmp_path: Path) -> None:
    """Several processes may open a new storage at once, and share it."""
    code = (
        "import sys; from pathlib import Path;"
        "from matryo.core.environment import load_settings; from matryo.batch.storage import open_storage;"
        "sys.stdin.readline();"
        "storage = open_storage(load_settings(None, home=Path(sys.argv[1])));"
        "upload = storage.add_file('ann', 'in'); upload.write(b'abc'); print(upload.commit().id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    ids = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    storage = open_storage(load_settings(None, home=tmp_path))
    assert sorted(file.id for file in storage.files("ann").items) == sorted(ids)
    storage.close()
