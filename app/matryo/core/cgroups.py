"""Where Linux keeps the limits of this process's control groups."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cgroup_folders(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Path]:
    """The folders of this process's cgroup and of its parents.

    Args:
        controller: `cpu` or `memory`; version 1 has a tree for each.
        root: mount point of cgroup file systems, version 1 or 2.
        membership: file that names the process's cgroups.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        own = base / path.lstrip("/")
        # In a container the path is often that of the host. Then only the mount point exists.
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(base)]
    return folders
