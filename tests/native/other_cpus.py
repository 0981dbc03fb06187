"""Holds that kernels for other CPUs give this CPU's bits: `python -m tests.native.other_cpus`.

AVX-512 is emulated by SIMDe. 64-bit ARM runs under QEMU. The script runs on x86-64, and says which
Debian package is missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ARM_LIBRARIES = "/usr/aarch64-linux-gnu"


def _missing() -> list[str]:
    """The Debian packages that are missing."""
    programs = {
        "g++": "g++",
        "cmake": "cmake",
        "ninja": "ninja-build",
        "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
        "qemu-aarch64": "qemu-user",
    }
    missing = [package for program, package in programs.items() if not shutil.which(program)]
    if not Path("/usr/include/simde/x86/avx512.h").is_file():
        missing.append("libsimde-dev")
    return missing


def _run(*command: str | Path, isa: str = "") -> str:
    """The standard output of a program that must succeed."""
    environment = os.environ | {"MATRYO_NATIVE_ISA": isa}
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def _same(what: str, expected: str, found: str) -> None:
    """Exits with the first line that differs, or reports that none does."""
    lines = expected.splitlines()
    for here, there in zip(lines, found.splitlines(), strict=True):
        if here != there:
            sys.exit(f"{what} gives other bits:\n{here}\n{there}")
    sys.stdout.write(f"{what}: {len(lines)} results have the same bits\n")


def check_avx512(folder: Path) -> None:
    """The whole library with emulated AVX-512 gives the bits of AVX2.

    Args:
        folder: where the library is built.
    """
    flags = ("-DMATRYO_EMULATE_AVX512=ON", "-DCMAKE_BUILD_TYPE=Release")
    _run("cmake", "-S", "native", "-B", folder, "-G", "Ninja", *flags)
    _run("cmake", "--build", folder)
    bits = (sys.executable, "-m", "tests.native.bits", folder / "libmatryo_native.so")
    _same("AVX-512, emulated", _run(*bits, isa="avx2"), _run(*bits, isa="avx512-vnni"))


def check_arm64(folder: Path, built: Path) -> None:
    """The kernels of 64-bit ARM give the bits of AVX2.

    Args:
        folder: where the programs are built.
        built: where `check_avx512` has built the library of this CPU.
    """
    source = ROOT / "native/src"
    flags = ("-std=c++17", "-O2", "-ffp-contract=off", f"-I{source}")
    both = ("tests/native/driver.cpp", source / "dispatch.cpp", source / "kernels_portable.cpp")
    arm_flags = ("-march=armv8.2-a+dotprod",)
    compiler = "aarch64-linux-gnu-g++"
    neon, arm = folder / "neon.o", folder / "arm"
    _run(compiler, *flags, *arm_flags, "-c", source / "kernels_neon.cpp", "-o", neon)
    _run(compiler, *flags, *both, neon, "-o", arm)
    found = _run("qemu-aarch64", "-L", _ARM_LIBRARIES, arm, isa="neon-dotprod")
    portable = _run("qemu-aarch64", "-L", _ARM_LIBRARIES, arm, isa="portable")
    _same("64-bit ARM without dot products", portable, found)
    x86, objects = folder / "x86", (built / "CMakeFiles/matryo_native.dir/src").glob("[dk]*.o")
    _run("g++", *flags, "tests/native/driver.cpp", *objects, "-o", x86)
    _same("64-bit ARM", _run(x86, isa="avx2"), found)


def main() -> None:
    """Check both, or exit with what is missing."""
    if platform.machine() != "x86_64":
        sys.exit(f"the bits of other CPUs are compared on x86_64, not on {platform.machine()}")
    if missing := _missing():
        sys.exit(f"packages are missing: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "avx512"
        check_avx512(built)
        check_arm64(Path(folder), built)


if __name__ == "__main__":
    main()
