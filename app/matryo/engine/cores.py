"""How the engines of one process share its cores."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

_MAX_WORKERS = 8


class RunCount:
    """Counts the concurrent runs of all engines in a process. Any thread may call its methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_running = 0

    def enter(self) -> bool:
        """Count a run that begins; returns whether it is the only run."""
        with self._lock:
            self._n_running += 1
            return self._n_running == 1

    def leave(self) -> None:
        """Count a run that ended."""
        with self._lock:
            self._n_running -= 1


@dataclass(frozen=True, slots=True)
class CoreUse:
    """How engines use the cores. A process makes one and gives the same one to every engine.

    Attributes:
        workers: concurrent runs.
        threads: threads of a run, if there are several concurrent runs.
        lone_threads: threads of a run, if it is the only one.
        runs: counts the runs of every engine that has this object.
    """

    workers: int
    threads: int
    lone_threads: int
    runs: RunCount = field(default_factory=RunCount, compare=False)


def plan_cores(cores: int, workers: int = 0, threads: int = 0) -> CoreUse:
    """The best use of so many cores by engines on a CPU.

    One run with one thread for each core computes the most tokens a second. There are at most
    eight concurrent runs: on more cores, each run gets several threads, because a few concurrent
    requests would otherwise leave most of the cores idle. Several processes with eight cores each
    compute more than one process on all cores. docs/performance.md has the figures.

    Args:
        cores: cores of this process, at least 1.
        workers: concurrent runs that the operator chose; 0 for the best number.
        threads: threads of each run that the operator chose; 0 for the best number.
    """
    workers = workers or min(cores, _MAX_WORKERS)
    threads = threads or max(1, cores // workers)
    return CoreUse(workers, threads, lone_threads=max(threads, cores))
