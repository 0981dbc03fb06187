"""What the processes of a server use together: memory and open files, as Linux counts them.

Processes of one server map the same files: weights, libraries. The kernel counts these pages for
each process, and they are in memory once. Anonymous memory is each process's own.

Source: proc_pid_status(5), https://man7.org/linux/man-pages/man5/proc_pid_status.5.html
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PROC = Path("/proc")
_KIB = 1024


class Usage(Collector):
    """Memory, open files and number of some processes, read when a scrape asks.

    Args:
        processes: gives the ids of the processes that serve, and of those that only look after
            them.
        proc: where the kernel shows processes. Systems other than Linux have none: nothing is
            shown there.
    """

    def __init__(
        self, processes: Callable[[], tuple[set[int], set[int]]], proc: Path = _PROC
    ) -> None:
        self._processes, self._proc = processes, proc

    def describe(self) -> Iterable[Metric]:
        """The metrics without values."""
        return _families(0, 0, 0)

    def collect(self) -> Iterator[Metric]:
        """The metrics; none where no process can be read."""
        serving, others = self._processes()
        anonymous = mapped = files = n_serving = 0
        for number in serving | others:
            with suppress(OSError, ValueError):  # it has ended, or this is no Linux
                fields = self._status(number)
                n_files = len(list((self._proc / str(number) / "fd").iterdir()))
                anonymous += fields["RssAnon"]
                mapped = max(mapped, fields["RssFile"] + fields["RssShmem"])
                files += n_files
                n_serving += number in serving
        if n_serving:
            yield from _families(anonymous + mapped, files, n_serving)

    def _status(self, number: int) -> dict[str, int]:
        """Bytes of resident memory by kind.

        Raises:
            OSError: there is no such process.
            ValueError: a line cannot be read.
        """
        text = (self._proc / str(number) / "status").read_text("ascii", "replace")
        fields: dict[str, int] = dict.fromkeys(("RssAnon", "RssFile", "RssShmem"), 0)
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in fields:
                fields[name] = _KIB * int(value.split()[0])
        return fields


def _families(resident: int, files: int, n_serving: int) -> list[Metric]:
    return [
        GaugeMetricFamily(
            "matryo_resident_memory_bytes",
            "Memory that the server's processes have, shared files counted once.",
            resident,
        ),
        GaugeMetricFamily("matryo_open_files", "Files, sockets and pipes that are open.", files),
        GaugeMetricFamily("matryo_processes", "Processes that serve.", n_serving),
    ]


def processes_of(folder: Path | None) -> Callable[[], tuple[set[int], set[int]]]:
    """Gives the processes of a server whenever it is called; see `Usage`.

    Args:
        folder: where several processes add up their metrics; None for this process alone.
    """

    def find() -> tuple[set[int], set[int]]:
        if folder is None:
            return {os.getpid()}, set()
        # prometheus_client has a file for each process, which goes when the process has ended.
        names = [path.stem.rpartition("_")[2] for path in folder.glob("gauge_livesum_*.db")]
        parent = multiprocessing.parent_process()
        others = {parent.pid} if parent and parent.pid else set[int]()
        return {int(name) for name in names if name.isdecimal()}, others

    return find
