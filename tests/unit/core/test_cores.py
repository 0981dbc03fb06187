"""Cores: affinity, and the quota of any enclosing cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from matryo.core.cores import available_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def machine(tmp_path: Path, membership: str, files: dict[str, str]) -> int:
    """Cores with such cgroup files."""
    root, member = tmp_path / "cgroup", tmp_path / "membership"
    tmp_path.mkdir(parents=True, exist_ok=True)
    member.write_text(membership)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return available_cores(root, member)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"pod/box/cpu.max": "400000 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "rubbish\n"}, 8),
    ],
)
def test_version_2(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    """`cpu.max` of our group and of those around it; the least holds."""
    assert machine(tmp_path, "0::/pod/box\n", files) == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("-1", 8), ("200000", 2), ("50000", 1), ("0", 8), ("x", 8)]
)
def test_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    """`cpu.cfs_quota_us` under the controller's own mount."""
    membership = "5:memory:/a\n4:cpu,cpuacct:/docker/1\n"
    for folder in ("cpu,cpuacct/docker/1", "cpu,cpuacct"):
        files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
        assert machine(tmp_path / folder, membership, files) == cores


def test_no_cgroups(tmp_path: Path) -> None:
    """Elsewhere affinity alone counts."""
    assert available_cores(tmp_path, tmp_path / "nothing") == 8
