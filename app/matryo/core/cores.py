"""How many cores this process may use: affinity, and the quota of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC_CGROUP = Path("/proc/self/cgroup")


def available_cores(root: Path = _CGROUP, membership: Path = _PROC_CGROUP) -> int:
    """Cores that may run at once, at least 1.

    The number of cores in this process's affinity mask, or the least CPU quota of its cgroup and
    the cgroups around it (version 1 or 2), whichever is less. A quota of 1.5 cores counts as 2.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`), and
    scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quotas = [quota for folder in _folders(root, membership) if (quota := _quota(folder))]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _folders(root: Path, membership: Path) -> list[Path]:
    """The folders of this process's cgroup and of the cgroups around it."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        own = base / path.lstrip("/")
        # In a container the path is often the host's, and only the mount's root exists.
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(base)]
    return folders


def _quota(folder: Path) -> float | None:
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
