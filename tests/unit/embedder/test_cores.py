"""Which cores does an `Embedder` use that was not told a number?"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from matryo import Embedder
from matryo.embedder import cores
from matryo.embedder import embedder as module

AVAILABLE = 6


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with six cores that no framework started."""
    monkeypatch.setattr(cores, "available_cores", lambda: AVAILABLE)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("ray", "pyspark", "distributed"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def ray(resources: dict[str, float] | None, *, started: bool = True) -> Any:
    """Ray's package in a worker with these resources; None for a driver."""
    context = SimpleNamespace(
        worker=SimpleNamespace(mode=0 if resources is None else 1),
        get_assigned_resources=lambda: resources,
    )
    return SimpleNamespace(
        WORKER_MODE=1, is_initialized=lambda: started, get_runtime_context=lambda: context
    )


def spark(cpus: int | None) -> Any:
    """Spark's package in a task with these CPUs; None outside of a task."""
    task = None if cpus is None else SimpleNamespace(cpus=lambda: cpus)
    return SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: task))


def dask(threads: int | None) -> Any:
    """Dask's package in a worker with these threads; None outside of a worker."""

    def get_worker() -> Any:
        if threads is None:
            raise ValueError("No worker found")
        return SimpleNamespace(state=SimpleNamespace(nthreads=threads))

    return SimpleNamespace(get_worker=get_worker)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, AVAILABLE),
        ("2", 2),
        (" 3 ", 3),
        ("4,2", 4),
        ("64", AVAILABLE),
        ("0", AVAILABLE),
        ("-1", AVAILABLE),
        ("many", AVAILABLE),
        ("", AVAILABLE),
    ],
)
def test_openmp(monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: int) -> None:
    """The first number of OMP_NUM_THREADS counts, within the process's cores; nonsense does not."""
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert cores.given_cores() == expected


@pytest.mark.parametrize(
    ("name", "package", "expected"),
    [
        ("ray", ray({"CPU": 4.0}), 4),
        ("ray", ray({"CPU": 0.5, "memory": 1e9}), 1),
        ("ray", ray({"CPU": 2.9}), 2),
        ("ray", ray({"CPU": 64.0}), AVAILABLE),
        ("ray", ray({}), 1),
        ("ray", ray(None), 3),
        ("ray", ray({"CPU": 4.0}, started=False), 3),
        ("pyspark", spark(2), 2),
        ("pyspark", spark(None), 3),
        ("distributed", dask(5), 5),
        ("distributed", dask(None), 3),
    ],
)
def test_frameworks(
    monkeypatch: pytest.MonkeyPatch, name: str, package: Any, expected: int
) -> None:
    """What a framework gave to this worker wins over OMP_NUM_THREADS, here 3; a driver has it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setitem(sys.modules, name, package)
    assert cores.given_cores() == expected


def test_the_embedder_asks_when_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is that of the process that loads the model; `threads` wins over it."""
    seen: list[int] = []

    def build(_settings: object, n: int) -> object:
        seen.append(n)
        raise RuntimeError

    monkeypatch.setattr(module, "build_local_service", build)
    embed: list[Callable[[], object]] = [
        lambda: Embedder("all-minilm-l6-v2").embed(["a"]),
        lambda: Embedder("all-minilm-l6-v2", threads=5).embed(["a"]),
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for call in embed:
        with pytest.raises(RuntimeError):
            call()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert seen == [2, 5]
