"""The code of a bundle: interpreter and libraries by PyInstaller, the launcher by Zig."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from matryo.core.errors import BuildFailed

PROGRAM = "matryo"
"""Name of the unpacked program; the launcher runs it."""

_PACKAGES = ("PyInstaller", "ziglang")
_TOOLS = ("objdump", "strip")  # PyInstaller runs objdump
# What reads and fetches checkpoints, what optional libraries import, and what no server needs.
_EXCLUDED = (
    *("gguf", "google", "hf_xet", "huggingface_hub", "onnx", "pip"),
    *("regex", "safetensors", "tomlkit", "transformers", "yaml"),
    *("IPython", "PIL", "matplotlib", "pandas", "pyarrow", "requests", "scipy", "sympy", "torch"),
    *("attr", "hypothesis", "markdown_it", "pygments", "pytest", "rich", "setuptools"),
    *("lib2to3", "pydoc_data", "readline", "sqlite3", "tkinter"),
)
_TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl"}


def bundle_platform() -> str:
    """System and processor that a bundle made here runs on, such as `linux-x86_64`.

    Raises:
        BuildFailed: no bundle can be made here.
    """
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in _TARGETS:
        raise BuildFailed(
            f"matryo bundle runs on Linux, on {' or '.join(_TARGETS)}, and this is {sys.platform} "
            f"on {machine}. Run matryo bundle on a machine of the kind that the file is for."
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BuildFailed(
            f"matryo bundle needs {' and '.join(missing)}. Install them with: "
            "pip install 'matryo[bundle]'"
        )
    absent = [name for name in _TOOLS if shutil.which(name) is None]
    if absent:
        raise BuildFailed(
            f"matryo bundle needs {' and '.join(absent)}. Install them with: apt install binutils"
        )
    return f"linux-{machine}"


def freeze(folder: Path, model: Path) -> Path:
    """Collect interpreter, libraries and one model folder.

    Args:
        folder: an empty folder to work in.
        model: the folder of the model's manifest.

    Returns:
        The folder of the code; the program in it is `PROGRAM`.

    Raises:
        BuildFailed: PyInstaller cannot collect them.
    """
    package = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "PyInstaller", str(package / "__main__.py")]
    command += ["--onedir", "--noconfirm", "--log-level", "WARN", "--name", PROGRAM]
    for flag, value in (("--distpath", "dist"), ("--workpath", "work"), ("--specpath", "spec")):
        command += [flag, str(folder / value)]
    command += ["--paths", str(package.parent), "--collect-submodules", "matryo"]
    for name in _EXCLUDED:
        command += ["--exclude-module", name]
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONHASHSEED": "0"}
    _run(command, "PyInstaller", environment | {"SOURCE_DATE_EPOCH": "0"})
    code = folder / "dist" / PROGRAM
    inside = code / "_internal" / "matryo" / "models"
    shutil.rmtree(inside, ignore_errors=True)  # those of an installed Matryo
    shutil.copytree(model, inside / model.name)
    _strip(code)
    return code


def _strip(code: Path) -> None:
    """Take the tables for debuggers out of libraries: a quarter of their bytes."""
    # A library that auditwheel has changed, in NAME.libs, cannot be loaded once it is stripped.
    names = sorted(code.rglob("*.so*"))
    plain = [path for path in names if not path.is_symlink() and path.parent.suffix != ".libs"]
    _run(["strip", "--strip-unneeded", *map(str, plain)], "strip", dict(os.environ))


def compile_launcher(path: Path) -> None:
    """Write the program that begins a bundle.

    Raises:
        BuildFailed: the compiler failed.
    """
    target = _TARGETS[platform.machine()]
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", "-O2", "-s"]
    command += ["-o", str(path), str(Path(__file__).with_name("launcher.c"))]
    _run(command, "the compiler of the launcher", dict(os.environ))


def _run(command: list[str], what: str, environment: dict[str, str]) -> None:
    done = subprocess.run(  # noqa: S603 - a fixed command with paths of our own
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr.strip() or "it said nothing").splitlines()
        raise BuildFailed(f"{what} failed: {' '.join(lines[-3:])}")
