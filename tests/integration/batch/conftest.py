"""A PostgreSQL and an S3 server, and a storage on each pair of database and store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from moto.server import ThreadedMotoServer

from matryo.batch.blobs.local import LocalBlobs
from matryo.batch.blobs.s3 import S3Blobs
from matryo.batch.sql.database import sqlite_url
from matryo.batch.sql.storage import SqlStorage
from tests.postgres import Cluster, cluster
from tests.storages import Place

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A server of PostgreSQL."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server with the bucket `matryo`, in AWS's own variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws(endpoint).items():
            patch.setenv(name, value)
        requests.put(f"{endpoint}/matryo", timeout=30).raise_for_status()
        yield endpoint
    server.stop()


def aws(endpoint: str) -> dict[str, str]:
    """AWS's variables for an endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture(params=["postgresql-s3", "postgresql-folder", "sqlite-s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Cluster, s3: str
) -> Iterator[Place]:
    """A database and a store without anything."""
    database, _, store = request.param.partition("-")
    number = next(_numbers)
    folder = tmp_path / "batches"
    folder.mkdir()
    made = Place(
        url=postgres.create(f"test{number}")
        if database == "postgresql"
        else sqlite_url(folder / "batches.sqlite3"),
        make_blobs=(lambda: S3Blobs(f"s3://matryo/{number}"))
        if store == "s3"
        else (lambda: LocalBlobs(folder)),
    )
    yield made
    made.close()


@pytest.fixture
def storage(place: Place) -> SqlStorage:
    """The storage of the place."""
    return place.storage()
