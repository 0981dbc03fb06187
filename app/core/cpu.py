"""What this CPU can do, as far as precisions care."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "i386", "i686")
_BYTE_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8"}


@functools.cache
def description() -> str:
    """Model and features of the CPU, the same at every start."""
    lines = _lines(("model name", "flags", "Features"))
    return "".join(sorted(set(lines))) or platform.processor() or platform.machine()


def adds_bytes_exactly(machine: str = "", cpuinfo: Path = _CPUINFO) -> bool:
    """Whether products of bytes are added in 32 bits, at full speed.

    So they are with VNNI or AMX, and off x86. Other x86 CPUs add pairs of them in 16 bits,
    which may saturate: 2 x 255 x 127 is twice what 16 bits hold. Where nothing tells, they
    are taken not to.

    Args:
        machine: as `platform.machine()` says it; empty for this one.
        cpuinfo: /proc/cpuinfo of it.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return True
    return any(_BYTE_PRODUCTS & set(line.split()) for line in _lines(("flags",), cpuinfo))


def _lines(kinds: tuple[str, ...], cpuinfo: Path = _CPUINFO) -> list[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        return []
    return [line for line in lines if line.startswith(kinds)]
