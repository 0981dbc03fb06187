"""Finds the NUMA nodes of a machine, and gives each server process one of them.

A core reads the memory of its own node faster than that of another node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")

_NODE = re.compile(r"node(\d+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def node_cores(root: Path = NODES) -> list[frozenset[int]]:
    """The cores of each NUMA node that this process may use, in the order of the nodes.

    A node without such a core is left out. The list is empty if the system has no affinity masks,
    or does not list its nodes.

    Args:
        root: folder with a folder for each node.

    Source: Linux, Documentation/ABI/stable/sysfs-devices-node (`cpulist`).
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return []
    allowed = os.sched_getaffinity(0)
    numbers = [
        int(found[1]) for path in root.glob("node*") if (found := _NODE.fullmatch(path.name))
    ]
    nodes: list[frozenset[int]] = []
    for number in sorted(numbers):
        try:
            listed = (root / f"node{number}" / "cpulist").read_text("utf-8")
        except (OSError, ValueError):
            return []
        nodes.append(frozenset(allowed & _cores(listed)))
    return [cores for cores in nodes if cores]


def _cores(listed: str) -> set[int]:
    """The numbers of a list of ranges, such as `0-3,8`."""
    found: set[int] = set()
    for part in listed.split(","):
        if bounds := _RANGE.fullmatch(part.strip()):
            found.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
    return found


def share_nodes(
    processes: int, cores: int, nodes: Sequence[frozenset[int]]
) -> list[frozenset[int]]:
    """The cores that each of several processes may run on: those of one NUMA node.

    The list is empty if the processes should run on every core: the machine has one node, the
    nodes cannot get equally many processes, or a node has too few cores for its processes.

    Args:
        processes: number of processes.
        cores: cores that each process uses.
        nodes: cores of each node.
    """
    if len(nodes) < 2 or processes % len(nodes):  # noqa: PLR2004 - one node is the whole machine
        return []
    each = processes // len(nodes)
    if min(map(len, nodes)) < each * cores:
        return []
    return [node for node in nodes for _ in range(each)]
