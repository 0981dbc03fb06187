"""Giving freed memory back to the system; glibc by itself keeps much of it."""

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
    """Make glibc map and unmap large blocks one by one, for the rest of the process.

    Bodies and results of some megabytes come and go on many threads. By itself glibc puts them
    onto heaps, one for each thread, where one small block that is still used keeps all the memory
    around it resident.

    Source: mallopt(3).
    """
    if libc := _libc():
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def release_free_memory() -> None:
    """Give the free pages of every heap back; takes milliseconds and does not hold the GIL."""
    if libc := _libc():
        libc.malloc_trim(0)
