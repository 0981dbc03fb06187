"""Ways to start worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import pytest


@pytest.fixture(params=["spawn", "fork", "forkserver"])
def workers(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The context of each start method of multiprocessing.

    A fork server keeps the environment that it was started in, and would keep it for later tests.
    """
    server: Any = forkserver
    server._forkserver._stop()
    yield multiprocessing.get_context(request.param)
    server._forkserver._stop()
