"""NUMA nodes: which cores they have, and which processes run on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from matryo.core.nodes import node_cores, share_nodes


def machine(root: Path, **nodes: str) -> Path:
    """A folder like `/sys/devices/system/node` with such lists of cores."""
    for name, listed in nodes.items():
        (root / name).mkdir()
        (root / name / "cpulist").write_text(listed)
    (root / "possible").write_text("0-1\n")
    (root / "node_files").mkdir()
    return root


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The cores that this process may use: 0 to 15, unless a test takes some away."""
    allowed = set(range(16))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    return allowed


def test_nodes(tmp_path: Path) -> None:
    """Nodes are in the order of their numbers, and a list has ranges and single cores."""
    root = machine(tmp_path, node10="15\n", node2="8-11,14\n", node0="0-3,12-13\n")
    assert node_cores(root) == [{0, 1, 2, 3, 12, 13}, {8, 9, 10, 11, 14}, {15}]


def test_allowed_cores(tmp_path: Path, cores: set[int]) -> None:
    """Cores outside the affinity mask do not count, and a node without other cores neither."""
    cores -= {0, *range(8, 16)}
    root = machine(tmp_path, node0="0-7\n", node1="8-15\n", node2="\n")
    assert node_cores(root) == [set(range(1, 8))]


@pytest.mark.parametrize("listed", [None, b"rubbish", b"0-", b"\xff"])
def test_unreadable(tmp_path: Path, listed: bytes | None) -> None:
    """Lists that are missing, or that are no lists, give no nodes."""
    path = machine(tmp_path, node0="") / "node0" / "cpulist"
    path.unlink()
    if listed is not None:
        path.write_bytes(listed)
    assert node_cores(tmp_path) == []


def test_no_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without such a folder, or without affinity masks, has no nodes."""
    assert node_cores(tmp_path / "missing") == []
    monkeypatch.delattr(os, "sched_getaffinity")
    assert node_cores(machine(tmp_path, node0="0-7")) == []


ONE, TWO = frozenset(range(8)), frozenset(range(8, 16))


@pytest.mark.parametrize(
    ("processes", "cores", "nodes", "shared"),
    [
        (2, 8, [ONE, TWO], [ONE, TWO]),
        (4, 4, [ONE, TWO], [ONE, ONE, TWO, TWO]),
        (2, 4, [ONE, TWO], [ONE, TWO]),  # a quota of half of the cores
        (4, 2, [ONE], []),
        (2, 8, [], []),
        (3, 5, [ONE, TWO], []),
        (2, 6, [ONE, frozenset(range(8, 12))], []),
        (1, 16, [ONE, TWO], []),
    ],
)
def test_sharing(
    processes: int,
    cores: int,
    nodes: list[frozenset[int]],
    shared: list[frozenset[int]],
) -> None:
    """Processes are on nodes only if each node has as many, and cores enough for them."""
    assert share_nodes(processes, cores, nodes) == shared
