"""How many cores may an `Embedder` use that was not told a number?

Frameworks give a worker process a part of the machine without any limit that the operating system
knows of. The rule is this list; the first number that exists counts:

1. `threads` of the `Embedder`;
2. what the framework gave to this worker: Ray the `num_cpus` of its task or actor, Spark
   `spark.task.cpus`, Dask the threads of the worker;
3. `OMP_NUM_THREADS`, which Slurm, joblib and many others set for the processes they start;
4. all cores that the process may use.

Numbers 2 and 3 are never more than the cores that the process may use, by its affinity and by the
quota of its cgroup.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from matryo.core.cores import available_cores


def given_cores() -> int:
    """The cores that this process was given by the rule above, at least 1."""
    available = available_cores()
    for number in (*_FRAMEWORKS, _openmp):
        cores = number()
        if cores is not None:
            return max(1, min(int(cores), available))
    return available


def _ray() -> float | None:
    """CPUs of the Ray task or actor that this process runs; None outside of one.

    Ray sets OMP_NUM_THREADS too, but not on a machine that has the variable already. Clusters
    that Ray's own launcher starts have OMP_NUM_THREADS=1 everywhere.
    """
    ray = _loaded("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None  # the driver
    # An actor without `num_cpus` is given no CPU. It takes one, as Ray's own rule has it.
    return context.get_assigned_resources().get("CPU", 1)


def _spark() -> float | None:
    """CPUs of the Spark task that this process runs; None outside of one."""
    spark = _loaded("pyspark")
    task = spark and spark.TaskContext.get()
    return task.cpus() if task else None


def _dask() -> float | None:
    """Threads of the Dask worker of this process; None outside of one.

    Dask sets OMP_NUM_THREADS=1 in every worker, because each thread runs a task of its own. All
    tasks of a process share one model here, which may use as many cores as the worker has threads.
    """
    distributed = _loaded("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker().state.nthreads
    except ValueError:  # no worker here
        return None


def _openmp() -> float | None:
    """The first number of OMP_NUM_THREADS; None if there is none."""
    # The variable may list a number for each level of nested loops: "8,2".
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def _loaded(module: str) -> Any:  # noqa: ANN401 - none of these packages is installed everywhere
    """A module that this process has imported; None if the process has not.

    A worker of a framework has imported the framework.
    """
    return sys.modules.get(module)


_FRAMEWORKS: tuple[Callable[[], float | None], ...] = (_ray, _spark, _dask)
