"""Ray Data on two nodes: formats, nulls, cores, errors, a worker that is killed, memory."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import ray_cluster
from matryo import Embedder
from matryo.embedder.cores import given_cores
from tests.fakes import MINILM
from tests.integration.engines.conftest import check_output
from tests.weights import Weights, mapped_weights

ray: Any = importlib.import_module("ray")
data: Any = importlib.import_module("ray.data")
GIVEN: dict[str, Any] = {"model": MINILM.id, "precision": "int8"}


@pytest.fixture(scope="module", autouse=True)
def cluster(environment: dict[str, str]) -> Iterator[None]:
    """Two nodes on this machine."""
    with ray_cluster.two_nodes():
        yield


def test_a_worker_is_killed(environment: dict[str, str], rows: Path, tmp_path: Path) -> None:
    """A worker that dies between two batches is replaced: every row is in the output, once."""
    nodes: dict[int, str] = {}
    memory: dict[int, Weights] = {}
    home = Path(environment["MATRYO_HOME"])

    def kill_one(workers: dict[int, str]) -> None:
        nodes.update(workers)
        memory.update({pid: mapped_weights(pid, home) for pid in workers})
        os.kill(min(workers), signal.SIGKILL)

    ray_cluster.embed(rows, tmp_path / "out", tmp_path / "seen", GIVEN, 100, kill_one)
    check_output(tmp_path / "out")
    assert len(set(nodes.values())) == 2
    assert len(ray_cluster.processes(tmp_path / "seen")) == 3
    # The model is small: some of the pages that one worker has mapped the other has not touched.
    first, second = memory.values()
    assert first.private == second.private == 0
    assert first.own + second.own < 0.7 * (first.resident + second.resident)


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas"])
def test_formats_and_nulls(batch_format: str) -> None:
    """Batches of each format keep their rows; a null is a null, and NaN in a matrix of NumPy."""
    texts = ["grass", None, "the sky", "blue"]
    out = (
        data.from_items([{"id": i, "text": text} for i, text in enumerate(texts)])
        .map_batches(
            Embedder,
            fn_constructor_kwargs=GIVEN | {"nulls": "keep", "fingerprint_column": "made_by"},
            batch_format=batch_format,
            num_cpus=1,
            compute=data.ActorPoolStrategy(size=1),
        )
        .take_all()
    )
    out.sort(key=lambda row: row["id"])
    with Embedder(**GIVEN) as embedder:
        expected = embedder.embed(["grass", "the sky", "blue"])
        assert {row["made_by"] for row in out} == {embedder.fingerprint}
    found = [np.array(out[i]["embedding"], np.float32) for i in (0, 2, 3)]
    assert np.array_equal(np.stack(found), expected)
    null = out[1]["embedding"]
    assert np.isnan(null).all() if batch_format == "numpy" else null is None


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the CPUs that Ray gave it, whatever OMP_NUM_THREADS says; a driver has all."""
    variables = {"env_vars": {"OMP_NUM_THREADS": "64"}}
    available = given_cores()
    for n_cpus, expected in ((1, 1), (0.5, 1), (2, min(2, available)), (0, 1)):
        task = ray.remote(num_cpus=n_cpus, runtime_env=variables)(given_cores)
        assert ray.get(task.remote()) == expected


def test_errors() -> None:
    """The error of a worker arrives with its sentence."""
    rows = data.from_items([{"text": None}])
    mapped = rows.map_batches(
        Embedder,
        fn_constructor_kwargs=GIVEN,
        num_cpus=1,
        compute=data.ActorPoolStrategy(size=1),
    )
    with pytest.raises(Exception, match=r'texts\[0\] is \w+.*nulls="keep"'):
        mapped.take_all()
