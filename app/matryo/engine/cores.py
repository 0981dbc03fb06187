"""How the engines of one process share its cores."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

_MAX_WORKERS = 8


class RunCount:
    """Counts the runs under way in a process, over all of its engines; safe on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_running = 0

    def enter(self) -> bool:
        """Count a run that begins.

        Returns:
            Whether no other run was under way.
        """
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
        threads: threads of one of several concurrent runs.
        lone_threads: threads of a run beside which no other run is under way.
        runs: counts the runs of every engine that has this object.
    """

    workers: int
    threads: int
    lone_threads: int
    runs: RunCount = field(default_factory=RunCount, compare=False)


def plan_cores(cores: int, workers: int = 0, threads: int = 0) -> CoreUse:
    """How engines on a CPU use this many cores best.

    As many runs of one thread as there are cores compute the most tokens a second. There are at
    most eight runs, because each of them also costs Python's time; on more cores, runs get more
    threads instead (docs/LOG.md has the measurements).

    Args:
        cores: cores of this process, at least 1.
        workers: concurrent runs, as the operator chose them; 0 for the best number.
        threads: threads of each run, as the operator chose them; 0 for the best number.
    """
    workers = workers or min(cores, _MAX_WORKERS)
    threads = threads or max(1, cores // workers)
    return CoreUse(workers, threads, lone_threads=max(threads, cores))
