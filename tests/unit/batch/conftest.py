"""A storage in a folder. The tests of `tests/integration/batch` give these tests other ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from matryo.batch.sql.storage import SqlStorage
from tests.storages import Place, folder_place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A database and a store without anything."""
    made = folder_place(tmp_path / "batches")
    yield made
    made.close()


@pytest.fixture
def storage(place: Place) -> SqlStorage:
    """The storage of the place."""
    return place.storage()
