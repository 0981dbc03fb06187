"""What this CPU can do, as far as it decides which kernels compute a vector."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

# Kernels are chosen by these. numpy's table has also groups of them, which differ between its
# versions, and features that no product of matrices uses.
_FEATURES = (
    *("SSE41", "SSE42", "AVX", "F16C", "FMA3", "AVX2"),
    *("AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL"),
    *("AVX512VNNI", "AVX512BF16", "AVX512FP16"),
    *("NEON", "NEON_FP16", "NEON_VFPV4", "ASIMD", "FPHP", "ASIMDHP", "ASIMDDP", "ASIMDFHM", "SVE"),
)


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The vector instructions that this process may use, in numpy's words; empty if unknown.

    numpy asks the CPU itself. `/proc/cpuinfo` describes the host's CPU to a process under an
    emulator such as qemu-user.
    """
    table: Mapping[str, bool] = getattr(
        importlib.import_module("numpy._core._multiarray_umath"), "__cpu_features__", {}
    )
    return tuple(name for name in _FEATURES if table.get(name))
