"""Runs the unit tests and real vectors on 64-bit ARM, emulated by QEMU: `python -m tests.arm64`.

The script makes a Debian root for arm64 with debootstrap, installs the locked wheels of arm64 there,
copies this checkout, and then runs in the root:

1. `matryo pull`, `build` and `verify` of all-minilm-l6-v2 in fp32 and int8, with ONNX Runtime's
   operators and with those of matryo-native;
2. tests.alone, whose vectors are compared with those of this machine;
3. the unit tests (`--no-tests` leaves them out).

It needs root, and the Debian packages debootstrap and qemu-user-static. A finished root is used
again. All of it takes about an hour on one core.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
MODEL = "all-minilm-l6-v2"
_SUITE, _PYTHON = "bookworm", "3.11"  # what that release has
_PACKAGES = "python3,python3-venv,g++"
_MIRROR = "http://deb.debian.org/debian"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_QEMU = "qemu-aarch64-static"
_MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
_GLIBC_TAGS = ("2014", "_2_17", "_2_26", "_2_27", "_2_28", "_2_31", "_2_34", "_2_35")
_SITE = f"opt/venv/lib/python{_PYTHON}/site-packages"  # programs of packages are in its bin
_CHECKOUT, _VENV, _VECTORS = "srv/matryo", "opt/venv", "srv/vectors"
_KERNELS = ("onnxruntime", "native")
# What QEMU's emulation of a process cannot do; everything else runs.
_LEFT_OUT: dict[str, str] = {}


def _run(*command: str | Path, **more: str) -> None:
    """Run a program of this machine, which must succeed."""
    subprocess.run([str(part) for part in command], env=os.environ | more, cwd=ROOT, check=True)


def register_emulator() -> None:
    """Have the kernel run programs of arm64 with QEMU, in every root."""
    if not (_BINFMT / "register").exists():
        _run("mount", "-t", "binfmt_misc", "none", _BINFMT)
    known = [one.read_text() for one in _BINFMT.glob("*") if one.name not in {"register", "status"}]
    if any("7f454c460201010000000000000000000200b700" in text and "F" in text for text in known):
        return
    emulator = shutil.which(_QEMU)
    # F: the kernel opens the emulator now, and needs no copy of the emulator in the root.
    (_BINFMT / "register").write_text(f":matryo-arm64:M::{_MAGIC[0]}:{_MAGIC[1]}:{emulator}:F")


def make_root(root: Path) -> None:
    """Make a Debian root with Python and a C++ compiler; a finished one is left as it is."""
    finished = root / "var/lib/matryo-root"
    if finished.exists():
        return
    options = ("--arch=arm64", "--foreign", "--variant=minbase", f"--include={_PACKAGES}")
    _run("debootstrap", *options, _SUITE, root, _MIRROR)
    inside(root, "/debootstrap/debootstrap", "--second-stage")
    finished.touch()


def inside(root: Path, *command: str, **environment: str) -> None:
    """Run a program in the root, with mounts and processes that end with the program."""
    # No /sys: what is in it of this machine's CPU makes ONNX Runtime of arm64 crash.
    mounts = f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc"
    start = f'{mounts} && exec chroot {root} "$@"'
    path = f"/{_VENV}/bin:/{_SITE}/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    given = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": path, "PYTHONUNBUFFERED": "1"}
    given |= environment
    apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    subprocess.run([*apart, "sh", "-ec", start, "sh", *command], env=given, check=True)


def install(root: Path) -> None:
    """Install the locked wheels of arm64, and this checkout with matryo-native."""
    lock = ROOT / "requirements/dev.lock"
    installed = root / "opt/dev.lock"
    if not (installed.exists() and installed.read_bytes() == lock.read_bytes()):
        shutil.rmtree(root / _VENV, ignore_errors=True)
        inside(root, "python3", "-m", "venv", "--without-pip", f"/{_VENV}")
        tags = [f"--platform=manylinux{tag}_aarch64" for tag in _GLIBC_TAGS]
        packages = f"--target={root / _SITE}"
        python = (f"--python-version={_PYTHON}", "--implementation=cp")
        _run(
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes"),
            *("--only-binary=:all:", *python, *tags, packages, "-r", lock),
        )
        shutil.copy(lock, installed)
    _copy_checkout(root / _CHECKOUT)
    pip = ("python3", "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    checkout = f"/{_CHECKOUT}"
    inside(root, *pip, "-e", checkout)
    inside(root, *pip, "--force-reinstall", f"{checkout}/native")


def _copy_checkout(target: Path) -> None:
    """Copy what git knows of this checkout, uncommitted changes included."""
    shutil.rmtree(target, ignore_errors=True)
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def check_model(root: Path) -> None:
    """Build and verify the model in the root, and compare its vectors with this machine's."""
    store = root / "var/lib/matryo"
    _run(sys.executable, "-m", "matryo", "pull", MODEL)
    home = Path(os.environ.get("MATRYO_HOME") or "~/.cache/matryo").expanduser()
    shutil.copytree(home / "checkpoints", store / "checkpoints", dirs_exist_ok=True)
    vectors = root / _VECTORS
    vectors.mkdir(exist_ok=True)
    matryo = ("python3", "-m", "matryo")
    for kernels in _KERNELS:
        chosen = {"MATRYO_HOME": f"/{store.relative_to(root)}", "MATRYO_KERNELS": kernels}
        inside(root, *matryo, "pull", MODEL, **chosen)
        for precision in ("fp32", "int8"):
            inside(root, *matryo, "build", MODEL, "--precision", precision, **chosen)
            inside(root, *matryo, "verify", MODEL, "--precision", precision, **chosen)
            name = f"{kernels}-{precision}.npz"
            alone = ("-m", "tests.alone", MODEL, precision)
            in_checkout = ("env", "-C", f"/{_CHECKOUT}", "python3")
            inside(root, *in_checkout, *alone, f"/{_VECTORS}/{name}", **chosen)
            _run(sys.executable, *alone, vectors / f"here-{name}", MATRYO_KERNELS=kernels)
            _compare(kernels, precision, vectors / name, vectors / f"here-{name}")


def _compare(kernels: str, precision: str, there: Path, here: Path) -> None:
    """Print how far the vectors of two machines are apart."""
    a, b = (np.load(file)["alone"].astype(np.float64) for file in (there, here))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    same = int((a == b).all(axis=1).sum())
    sys.stdout.write(
        f"{MODEL} {precision}, {kernels}: against {platform.machine()} max abs "
        f"{np.abs(a - b).max():.2e}, cosine at least {cosine.min():.9f}, "
        f"{same} of {len(a)} texts bit for bit\n"
    )
    sys.stdout.flush()


def run_tests(root: Path) -> None:
    """Run the unit tests in the root."""
    left_out = [f"--deselect={name}" for name in _LEFT_OUT]
    pytest = ("python3", "-m", "pytest", "-n", "0", "--timeout", "1800", *left_out, "tests/unit")
    inside(root, "env", "-C", f"/{_CHECKOUT}", *pytest)


def _missing() -> list[str]:
    """The Debian packages that are missing."""
    programs = {"debootstrap": "debootstrap", _QEMU: "qemu-user-static", "git": "git"}
    return [package for program, package in programs.items() if not shutil.which(program)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the root, and run everything in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/var/lib/matryo-arm64"))
    parser.add_argument("--no-tests", action="store_true", help="leave the unit tests out")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        sys.exit("a root for arm64 needs the rights of root: run this with sudo")
    if missing := _missing():
        sys.exit(f"packages are missing: apt-get install {' '.join(missing)}")
    root: Path = given.root.absolute()
    register_emulator()
    make_root(root)
    install(root)
    check_model(root)
    if not given.no_tests:
        run_tests(root)


if __name__ == "__main__":
    main()
