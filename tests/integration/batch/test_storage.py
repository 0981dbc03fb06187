"""What holds for SQLite and a folder holds for PostgreSQL and S3: the same tests, other places."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from matryo.batch.blobs.s3 import S3Blobs
from tests.postgres import Cluster
from tests.storages import Place

# ruff: noqa: F403 - pytest finds the tests by their names here
from tests.unit.batch.test_batches import *
from tests.unit.batch.test_claims import *
from tests.unit.batch.test_files import *
from tests.unit.batch.test_machine import Machine


def test_any_order_of_calls(postgres: Cluster, s3: str) -> None:
    """What holds for any order of calls on SQLite holds on PostgreSQL."""
    numbers = itertools.count()

    class OnServers(Machine):
        """The machine on the two servers."""

        def open_place(self) -> Place:
            """A schema and a prefix without anything."""
            name = f"machine{next(numbers)}"
            return Place(postgres.create(name), lambda: S3Blobs(f"s3://matryo/{name}"))

    run_state_machine_as_test(
        OnServers, settings=settings(max_examples=10, stateful_step_count=20, deadline=None)
    )
