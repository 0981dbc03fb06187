"""Finds the number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from matryo.core.cgroups import MEMBERSHIP, ROOT, cgroup_folders


def available_cores(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """The number of cores that this process may use at once, at least 1.

    It is the smaller of two numbers: the cores in the process's affinity mask, and the lowest CPU
    quota of the process's cgroup and of its parents. A quota of 1.5 cores counts as 2.

    Args:
        root: mount point of cgroup file systems, version 1 or 2.
        membership: file that names the process's cgroups.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`), and
    scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quotas = [
        quota for folder in cgroup_folders("cpu", root, membership) if (quota := _quota(folder))
    ]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _quota(folder: Path) -> float | None:
    """The CPU quota of a cgroup, in cores; None if it has none."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
