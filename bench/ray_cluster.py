"""Ray Data on a cluster of two nodes on this machine, and what its workers do there.

The interpreter must have Ray: see `bench.engines`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from matryo import Embedder

WORKERS = 2
GATE = "gate"
_NODE_CPUS = 2  # one for the worker, one for reading and writing
_OBJECT_STORE_BYTES = 1 << 30
_STARTS = 3
_LOOK_S = 0.05


class Watched(Embedder):
    """An embedder whose process is seen.

    Args:
        seen: folder that gets a file after each process that has embedded a batch; the file holds
            the node. No worker goes on after its first batch until the folder has the file `GATE`.
        given: arguments of the embedder.
    """

    def __init__(self, seen: str, given: dict[str, Any]) -> None:
        super().__init__(**given)
        self._seen = Path(seen)

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - a batch of Ray
        """The batch with its vectors, once the gate is open."""
        answer = super().__call__(batch)
        mine = self._seen / str(os.getpid())
        if not mine.exists():
            mine.write_text(_ray().get_runtime_context().get_node_id())
        while not (self._seen / GATE).exists():
            time.sleep(_LOOK_S)
        return answer


@contextlib.contextmanager
def two_nodes() -> Generator[None]:
    """A cluster of two nodes with room for one worker each; this process is its driver."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_worker_niceness": "0",  # as what it is compared with; Ray's default is 15
    }
    cluster = _start()
    try:
        _ray().init(address=cluster.address, logging_level="warning")
        yield
    finally:
        _ray().shutdown()
        cluster.shutdown()


def _start() -> Any:  # noqa: ANN401 - a cluster of Ray
    """A cluster whose nodes run.

    Ray gives each node 15 seconds to start all its processes, and that cannot be changed. On a
    machine with other work the processes need longer at first.
    """
    cluster_utils: Any = importlib.import_module("ray.cluster_utils")
    node = {
        "num_cpus": _NODE_CPUS,
        "resources": {"worker": 1},
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    for left in reversed(range(_STARTS)):
        cluster = cluster_utils.Cluster()
        try:
            cluster.add_node(include_dashboard=False, **node)
            cluster.add_node(**node)
            cluster.wait_for_nodes()
            return cluster
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    raise AssertionError


def embed(
    source: Path,
    target: Path,
    seen: Path,
    given: dict[str, Any],
    batch_size: int,
    while_all_wait: Callable[[dict[int, str]], object],
) -> float:
    """Embed a folder of Parquet with one worker on each node; returns the seconds it took.

    Args:
        source: folder to read.
        target: folder to write.
        seen: as for `Watched`.
        given: arguments of the embedder.
        batch_size: rows of a batch, and of a block: what Ray gives to a worker at a time. The
            input must have a few batches for each worker.
        while_all_wait: is called with the node of each worker's process once every worker has
            embedded a batch, which it has not yet handed on.
    """
    data: Any = importlib.import_module("ray.data")
    seen.mkdir()
    watcher = threading.Thread(target=_watch, args=(seen, while_all_wait), daemon=True)
    watcher.start()
    began = time.perf_counter()
    rows = data.read_parquet(str(source)).repartition(target_num_rows_per_block=batch_size)
    rows.map_batches(
        Watched,
        fn_constructor_args=(str(seen), given),
        batch_format="pyarrow",
        batch_size=batch_size,
        num_cpus=1,
        resources={"worker": 1},
        compute=data.ActorPoolStrategy(size=WORKERS),
    ).write_parquet(str(target))
    spent_s = time.perf_counter() - began
    watcher.join()
    return spent_s


def _watch(seen: Path, while_all_wait: Callable[[dict[int, str]], object]) -> None:
    while len(found := processes(seen)) < WORKERS:
        time.sleep(_LOOK_S)
    try:
        while_all_wait(found)
    finally:
        (seen / GATE).touch()


def processes(seen: Path) -> dict[int, str]:
    """The node of each process that has embedded a batch."""
    found = {path.name: path.read_text() for path in seen.iterdir() if path.name != GATE}
    return {int(name): node for name, node in found.items() if node}


def _ray() -> Any:  # noqa: ANN401 - installed for measurements only
    return importlib.import_module("ray")
