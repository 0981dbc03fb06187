"""The code of a bundle: interpreter and libraries by PyInstaller, the launcher by Zig."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from matryo.build.bundle.stage import stage_model
from matryo.core.errors import BuildFailed

PROGRAM = "matryo"
"""Name of the unpacked program; the launcher runs it."""

_PACKAGES = ("PyInstaller", "ziglang")
_TOOLS = ("objdump", "strip")  # PyInstaller runs objdump
# What reads and fetches checkpoints, what optional libraries import, and what no server needs.
_EXCLUDED = (
    *("gguf", "hf_xet", "huggingface_hub", "onnx", "pip"),
    *("regex", "safetensors", "tomlkit", "transformers", "yaml"),
    *("IPython", "PIL", "matplotlib", "pandas", "pyarrow", "requests", "scipy", "sympy", "torch"),
    *(
        "attr",
        "grpc_tools",
        "hypothesis",
        "markdown_it",
        "pydantic.v1",
        "pygments",
        "pytest",
        "setuptools",
    ),
    *("lib2to3", "pydoc_data", "readline", "sqlite3", "tkinter"),
    # The Batch API, whose state a file that is copied around should not have.
    *("obstore", "psycopg", "psycopg_binary", "python_multipart", "sqlalchemy"),
)

# Folders in our package with files that are no modules.
_DATA = ("http/page/assets",)


@dataclass(frozen=True, slots=True)
class _Door:
    """A door that a bundle has if the door's libraries are installed where the bundle is made.

    Attributes:
        name: what users call the door.
        extra: the extra of Matryo that installs the libraries.
        packages: the libraries; other bundles leave them out.
        hidden: modules that PyInstaller does not find by itself.
        data: files in our package that are no modules.
        metadata: distributions whose metadata are read when they are imported.
    """

    name: str
    extra: str
    packages: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether every library is there."""
        return not any(map(_is_missing, self.packages))


_DOORS = (
    _Door(
        "gRPC",
        extra="grpc",
        packages=("grpc", "google.protobuf"),
        hidden=("google._upb._message",),
        data=("grpc/protos/descriptors.binpb",),
    ),
    _Door(
        "MCP",
        extra="mcp",
        packages=("mcp", "mcp_types"),
        hidden=("opentelemetry.context.contextvars_context",),
        metadata=("opentelemetry-api",),
    ),
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
    missing = [name for name in _PACKAGES if _is_missing(name)]
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


def missing_doors() -> list[str]:
    """A sentence on each door that a bundle made here lacks."""
    return [
        f"the file will have no {door.name}; for a file with {door.name}, first run: "
        f"pip install 'matryo[{door.extra}]'"
        for door in _DOORS
        if not door.is_installed
    ]


def _is_missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:  # its parent is missing
        return True


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
    for path in map(Path, _DATA):
        command += ["--add-data", f"{package / path}:matryo/{path}"]
    # rich imports the widths of characters by a name that it puts together.
    command += ["--collect-submodules", "rich._unicode_data"]
    command += _door_flags(package)
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONHASHSEED": "0"}
    _run(command, "PyInstaller", environment | {"SOURCE_DATE_EPOCH": "0"})
    code = folder / "dist" / PROGRAM
    inside = code / "_internal" / "matryo" / "models"
    shutil.rmtree(inside, ignore_errors=True)  # those of an installed Matryo
    stage_model(model, inside)
    _strip(code)
    return code


def _door_flags(package: Path) -> list[str]:
    """Flags of PyInstaller: what to leave out, and what the doors need."""
    installed = [door for door in _DOORS if door.is_installed]
    needed = {name for door in installed for name in door.packages}
    known = {*_EXCLUDED, *(name for door in _DOORS for name in door.packages)}
    flags: list[str] = []
    for name in sorted(known - needed):
        flags += ["--exclude-module", name]
    for door in installed:
        for name in door.hidden:
            flags += ["--hidden-import", name]
        for name in door.metadata:
            flags += ["--copy-metadata", name]
        for path in map(Path, door.data):
            flags += ["--add-data", f"{package / path}:matryo/{path.parent}"]
    return flags


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
