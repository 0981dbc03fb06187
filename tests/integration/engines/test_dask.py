"""Dask: types, nulls, cores, one model a process, errors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from matryo import Embedder
from matryo.core.cores import available_cores
from matryo.core.errors import InvalidRequest
from matryo.embedder import embedder as module
from matryo.embedder.cores import given_cores
from tests.fakes import MINILM

dd: Any = importlib.import_module("dask.dataframe")
distributed: Any = importlib.import_module("distributed")
pd: Any = importlib.import_module("pandas")
TEXTS = ["grass", None, "the sky", "blue"] * 8


@pytest.fixture(scope="module")
def client(environment: dict[str, str]) -> Iterator[Any]:
    """One worker process of two threads."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def frame() -> Any:
    """A few texts in eight partitions."""
    return dd.from_pandas(pd.DataFrame({"text": TEXTS}), npartitions=8)


@pytest.mark.parametrize("scheduler", [None, "threads", "processes", "sync"])
def test_partitions(client: Any, frame: Any, scheduler: str | None) -> None:
    """Every scheduler gives the types that an empty batch announces, and null for null."""
    embedder = Embedder(MINILM.id, nulls="keep", fingerprint_column="made_by", threads=1)
    announced = embedder(frame.head(0))
    mapped = frame.map_partitions(embedder, meta=announced)
    found = mapped.compute(scheduler=scheduler) if scheduler else mapped.compute()
    assert found.dtypes.to_dict() == announced.dtypes.to_dict()
    assert found["embedding"].isna().tolist() == [text is None for text in TEXTS]
    vectors = np.stack(found["embedding"].dropna()).astype(np.float32)
    with Embedder(MINILM.id) as same:
        assert np.array_equal(vectors, same.embed([text for text in TEXTS if text]))
        assert set(found["made_by"]) == {same.fingerprint}


def _loads() -> tuple[int, int]:
    """The process, and the embedders that it has unpickled."""
    return os.getpid(), module._of_this_process.cache_info().misses


def test_one_model_for_all_tasks_of_a_process(client: Any, frame: Any) -> None:
    """Each of eight partitions brings the embedder along; the worker loads one model."""
    embedder = Embedder(MINILM.id, nulls="keep", dimensions=8)
    ((before,),) = (client.run(_loads).values(),)
    frame.map_partitions(embedder, meta=embedder(frame.head(0))).compute()
    ((after,),) = (client.run(_loads).values(),)
    assert after == (before[0], before[1] + 1)


def test_cores(client: Any) -> None:
    """A model has the threads of its worker: Dask sets OMP_NUM_THREADS=1 whatever their number."""
    assert client.submit(os.environ.get, "OMP_NUM_THREADS").result() == "1"
    assert client.submit(given_cores).result() == min(2, available_cores())


def test_errors(client: Any, frame: Any) -> None:
    """The error of a worker is raised here, as what it is."""
    embedder = Embedder(MINILM.id)
    with pytest.raises(InvalidRequest, match=r'texts\[1\] is .*nulls="keep"'):
        frame.map_partitions(embedder, meta=embedder(frame.head(0))).compute()
