"""PostgreSQL and S3 that go away, replicas that are killed, and rows that others hold."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from matryo.batch.blobs import BlobMissing
from matryo.batch.blobs.s3 import S3Blobs
from matryo.batch.sql.storage import SqlStorage
from matryo.batch.sql.tables import batches
from matryo.batch.storage import open_storage
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid, StorageUnavailable
from tests.integration.batch import worker
from tests.integration.batch.conftest import aws
from tests.postgres import Cluster, cluster
from tests.storages import Place, add_batch, add_file, claimed, content, results, window


@pytest.fixture
def own_postgres() -> Iterator[Cluster]:
    """A PostgreSQL that the test may stop."""
    with cluster() as made:
        yield made


@pytest.mark.timeout(180)
def test_postgresql_goes_away(own_postgres: Cluster, s3: str) -> None:
    """Every call fails clearly while PostgreSQL is down; afterwards each has its effect once."""
    place = Place(own_postgres.url(), lambda: S3Blobs("s3://matryo/away"))
    storage = place.storage()
    file = add_file(storage)
    add_batch(storage, file)
    claim = claimed(storage)
    claim.begin(2, None)
    own_postgres.stop()
    for call in (
        lambda: storage.file("ann", file.id),
        lambda: add_file(storage),
        storage.claim,
        storage.sweep,
        claim.renew,
        lambda: claim.commit(window(b"lost\n")),
        lambda: claim.finish("completed"),
    ):
        with pytest.raises(StorageUnavailable):
            call()
    own_postgres.start()
    claim.commit(window(b"a\n"))
    claim.commit(window(b"b\n"))
    assert results(storage, claim.finish("completed")) == [b"a\nb\n", b""]
    storage.sweep()
    assert place.stored() == place.known()
    place.close()


@pytest.mark.timeout(180)
def test_s3_goes_away(postgres: Cluster, monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """An upload, a window and a download fail clearly while S3 is down, and change nothing."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in aws(f"http://{host}:{port}").items():
        monkeypatch.setenv(name, value)
    requests.put(f"http://{host}:{port}/outage", timeout=30).raise_for_status()
    place = Place(postgres.create("outage"), lambda: S3Blobs("s3://outage/x", patience_s=1))
    storage = place.storage()
    file = add_file(storage)
    batch = add_batch(storage, file)
    claim = claimed(storage)
    claim.begin(2, None)
    server.stop()
    upload = storage.add_file("ann", "in")
    upload.write(b"abc")
    for call in (
        upload.commit,
        lambda: claim.commit(window(b"lost\n")),
        lambda: content(storage, file),
        storage.sweep,
    ):
        with pytest.raises(StorageUnavailable):
            call()
    upload.abort()
    assert storage.batch("ann", batch.id).counts.completed == 0
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    claim.commit(window(b"a\n"))
    assert results(storage, claim.finish("completed")) == [b"a\n", b""]
    assert content(storage, file) == b"1\n2\n3\n"
    storage.sweep()
    assert place.stored() == place.known()
    place.close()
    server.stop()


def test_a_locked_batch_is_skipped(postgres: Cluster, s3: str) -> None:
    """A claim does not wait for a batch that another transaction is just changing."""
    place = Place(postgres.create("locked"), lambda: S3Blobs("s3://matryo/locked"))
    storage = place.storage()
    first, second = add_batch(storage), add_batch(storage)
    with place.database().writing() as transaction:
        locked = select(batches.c.id).where(batches.c.id == first.id).with_for_update()
        assert transaction.connection.execute(locked).scalar_one() == first.id
        assert claimed(storage).batch.id == second.id
        assert storage.claim() is None
    assert claimed(storage).batch.id == first.id
    place.close()


def test_the_clock_is_postgresqls(postgres: Cluster, s3: str) -> None:
    """A replica whose own clock is wrong takes over no live lease."""
    place = Place(postgres.create("clock"), lambda: S3Blobs("s3://matryo/clock"))
    place.clock = None  # type: ignore[assignment]
    storage = place.storage()
    batch = add_batch(storage)
    with place.database().reading() as transaction:
        assert abs(transaction.now - batch.created_at) < 60
    claimed(storage)
    assert storage.claim() is None
    place.close()


def _environment(place: dict[str, str], endpoint: str) -> dict[str, str]:
    paths = os.pathsep.join(path for path in (*sys.path, os.getcwd()) if path)  # noqa: PTH109
    return os.environ | aws(endpoint) | place | {"PYTHONPATH": paths}


def _settings(postgres: Cluster, name: str, tmp_path: Path) -> dict[str, str]:
    return {
        "MATRYO_HOME": str(tmp_path),
        "MATRYO_BATCH_DATABASE": postgres.create(name)
        .set(drivername="postgresql")
        .render_as_string(hide_password=False),
        "MATRYO_BATCH_STORE": f"s3://matryo/{name}",
        "MATRYO_BATCH_LEASE_S": "1",
    }


def _opened(settings: dict[str, str]) -> SqlStorage:
    flags: dict[str, Any] = {
        name.removeprefix("MATRYO_").lower(): value for name, value in settings.items()
    }
    storage = open_storage(load_settings(None, **flags))
    assert isinstance(storage, SqlStorage)
    return storage


@pytest.mark.timeout(300)
def test_replicas_that_are_killed(postgres: Cluster, s3: str, tmp_path: Path) -> None:
    """Two replicas, twenty SIGKILLs at any point: every line of every batch is there once."""
    settings = _settings(postgres, "killed", tmp_path)
    environment = _environment(settings, s3)
    storage = _opened(settings)
    made = [
        add_batch(storage, add_file(storage, worker.INPUT, owner), owner)
        for owner in ("ann", "bob", "eve")
    ]

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.integration.batch.worker"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    choice = random.Random(20)
    running = [start(), start()]
    for _ in range(20):
        victim = running.pop(0)
        assert victim.stdout
        for _ in range(choice.randint(1, 6)):  # lines of its output before it dies
            victim.stdout.readline()
        victim.kill()
        victim.communicate()
        running.append(start())
    for process in running:
        assert process.communicate()[0].endswith("done\n")
        assert process.returncode == 0
    good, bad = worker.answers(worker.INPUT.splitlines(keepends=True))
    for batch in made:
        ended = storage.batch(batch.owner, batch.id)
        assert ended.status == "completed"
        assert (ended.counts.total, ended.counts.completed, ended.counts.failed) == (40, 20, 20)
        assert results(storage, ended, batch.owner) == [good, bad]
    storage.sweep()
    place = Place(storage._database.engine.url, lambda: S3Blobs("s3://matryo/killed"))
    assert place.stored() == place.known()
    place.close()
    storage.close()


def test_what_cannot_be_opened(postgres: Cluster, s3: str, tmp_path: Path) -> None:
    """A bucket that does not exist, and another database's prefix, are refused by name."""
    settings = _settings(postgres, "refused", tmp_path)
    with pytest.raises(SettingsInvalid, match="s3://nowhere/x"):
        _opened(settings | {"MATRYO_BATCH_STORE": "s3://nowhere/x"})
    storage = _opened(settings)
    add_file(storage)
    storage.close()
    other = _settings(postgres, "refused2", tmp_path)
    with pytest.raises(SettingsInvalid, match="belongs to another database"):
        _opened(other | {"MATRYO_BATCH_STORE": settings["MATRYO_BATCH_STORE"]})
    with pytest.raises(SettingsInvalid, match="knows files, but s3://matryo/empty is not"):
        _opened(settings | {"MATRYO_BATCH_STORE": "s3://matryo/empty"})


def test_credentials_of_a_profile(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_PROFILE names credentials in AWS's own file; without boto3, the message says so."""
    file = tmp_path / "credentials"
    file.write_text("[batches]\naws_access_key_id = key\naws_secret_access_key = secret\n", "utf-8")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "batches")
    blobs = S3Blobs("s3://matryo/profile")
    blobs.put("a/b", b"abc")
    assert (blobs.get("a/b", 1, 3), list(blobs.keys())) == (b"bc", ["a/b"])
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SettingsInvalid, match="nobody"):
        S3Blobs("s3://matryo/profile")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "boto3" else find(name)
    )
    with pytest.raises(SettingsInvalid, match="pip install boto3"):
        S3Blobs("s3://matryo/profile")


def test_a_range_past_the_end(s3: str) -> None:
    """A range that an object does not have is missing, whether its begin is there or not."""
    blobs = S3Blobs("s3://matryo/ranges")
    blobs.put("a", b"abc")
    for start, end in [(0, 4), (3, 4), (7, 9)]:
        with pytest.raises(BlobMissing):
            blobs.get("a", start, end)
    with pytest.raises(BlobMissing):
        blobs.get("b", 0, 1)
    assert (blobs.size("a"), blobs.size("b")) == (3, None)
    blobs.delete(["a", "b"])
    assert list(blobs.keys()) == []
