"""Gives freed memory back to the operating system; glibc keeps much of it by default."""

from __future__ import annotations

import ctypes
import functools
import sys

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
