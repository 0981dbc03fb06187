"""What kind of machine this is: figures of one kind of CPU say little of another."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# Instructions that products of bytes profit from, the fastest first; Linux' names of the flags.
_CLASSES = (
    ("amx_int8", "AMX"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx_vnni", "AVX VNNI"),
    ("avx512bw", "AVX-512"),
    ("avx2", "AVX2"),
    ("i8mm", "NEON i8mm"),
    ("asimddp", "NEON dot product"),
    ("asimd", "NEON"),
)


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """The CPU as its maker calls it; its architecture where Linux does not say."""
    return _fields(cpuinfo).get("model name") or platform.processor() or platform.machine()


def cpu_class(cpuinfo: Path = _CPUINFO) -> str:
    """The fastest instructions of the CPU for products of bytes; its architecture if unknown."""
    fields = _fields(cpuinfo)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return next((words for flag, words in _CLASSES if flag in flags), platform.machine())


def _fields(cpuinfo: Path) -> dict[str, str]:
    """The fields of the first core."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on macOS
        return {}
    first = text.partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
