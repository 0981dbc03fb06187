"""The memory of this process: how much there may be, and giving back what is free."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

from matryo.core.cgroups import MEMBERSHIP, ROOT, cgroup_folders

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_MMAP_THRESHOLD_BYTES = 1 << 20
_ARENAS = 2


@functools.cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "malloc_trim") else None
    except OSError:  # musl
        return None


def tune_allocator() -> None:
    """Make glibc map and unmap each large block by itself, until the process ends.

    Many threads allocate and free bodies and results of some megabytes. By default glibc allocates
    them on heaps, about one for each thread. A small block that is still in use can then keep the
    freed memory around it resident.

    Source: mallopt(3).
    """
    if libc := _libc():
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def release_free_memory() -> None:
    """Give the free pages of every heap back to the operating system.

    The call takes milliseconds and does not hold the GIL.

    Source: malloc_trim(3).
    """
    if libc := _libc():
        libc.malloc_trim(0)


def available_memory(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Bytes of memory that this process may use: its container's limit, or the machine's memory.

    Args:
        root: mount point of cgroup file systems, version 1 or 2.
        membership: file that names the process's cgroups.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`memory.max`), and
    cgroup-v1/memory.rst (`memory.limit_in_bytes`, a number near 2**63 for no limit).
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in cgroup_folders("memory", root, membership):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            try:
                limits.append(int((folder / name).read_text(encoding="utf-8")))
            except (OSError, ValueError):  # absent, or "max"
                continue
    return min(limits)


def is_in_memory(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether the files of a folder take memory and no disk.

    Args:
        folder: an absolute path without links.
        mounts: the table of mounts. Source: fstab(5).
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    kinds: dict[Path, str] = {}
    for line in lines:  # of two mounts at one path, the later one counts
        _, path, kind, *_ = line.split(" ")
        kinds[Path(path.replace("\\040", " "))] = kind
    found = next((kinds[path] for path in (folder, *folder.parents) if path in kinds), "")
    return found in ("tmpfs", "ramfs")
