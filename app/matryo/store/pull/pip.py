"""pip as a program: it knows this machine's indexes, credentials, certificates and proxies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from matryo.core.errors import PullFailed
from matryo.store.files import make_folder, remove_tree, temporary_directory
from matryo.store.limits import DOWNLOAD_ATTEMPTS, PIP_RETRIES, PIP_TIMEOUT_S
from matryo.store.pull.download import without_credentials

# Settings of pip that its connections depend on, and our own do not read.
_NETWORK = frozenset(
    {
        *("proxy", "cert", "client-cert", "trusted-host", "keyring-provider"),
        *("no-index", "find-links", "use-feature", "use-deprecated"),
    }
)
_INDEXES = frozenset({"index-url", "extra-index-url"})
_TELLING = re.compile(
    r"40[137]|SSL|certificate|proxy|connection|timed out|credential", re.IGNORECASE
)
# `python -m pip`, which ends when this process does: then its standard input is closed.
_PROGRAM = """
import os, runpy
from matryo.core.lifetime import end_with_parent
end_with_parent(lambda: os.read(0, 1), 5)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def has_network_settings() -> bool:
    """Whether pip is told to connect in a way of its own: by its configuration, or by netrc.

    Raises:
        PullFailed: pip cannot run, or cannot read its configuration.
    """
    if any(os.environ.get(name) for name in ("NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")):
        return True
    if any(Path(os.path.expanduser(name)).exists() for name in ("~/.netrc", "~/_netrc")):  # noqa: PTH111 - no error without a home
        return True
    for line in _run("config", "list").splitlines():
        name, _, value = line.partition("=")
        key = name.strip().rsplit(".", 1)[-1].replace("_", "-")
        if key in _NETWORK:
            return True
        urls = value.strip().strip("'\"").replace("\\n", " ").split()
        if key in _INDEXES and any(urlsplit(url).username for url in urls):
            return True
    return False


def resolve(requirement: str) -> str:
    """The URL of a requirement's wheel, as pip finds it; without the credentials of the index.

    Raises:
        PullFailed: pip does not find the wheel.
    """
    report = _run(
        *("install", "--dry-run", "--ignore-installed", "--report", "-"), *_wheel_of(requirement)
    )
    return cast("str", json.loads(report)["install"][0]["download_info"]["url"])


def download(requirement: str, into: Path) -> Path:
    """Have pip download a requirement's wheel to a new folder in `into`.

    Raises:
        PullFailed: pip does not find the wheel, or the wheel does not come.
    """
    folder = into / "pip"
    remove_tree(folder)
    make_folder(folder)
    _run(
        *("download", "--dest", str(folder), "--no-cache-dir"),
        *("--resume-retries", f"{DOWNLOAD_ATTEMPTS}"),
        *_wheel_of(requirement),
    )
    return next(folder.glob("*.whl"))


def _wheel_of(requirement: str) -> tuple[str, ...]:
    """Arguments for the wheel of a requirement alone."""
    return (
        *("--no-deps", "--only-binary=:all:", "--quiet"),
        *("--retries", f"{PIP_RETRIES}", "--timeout", f"{PIP_TIMEOUT_S}"),
        requirement,
    )


def _run(*arguments: str) -> str:
    """Standard output of pip.

    Raises:
        PullFailed: pip ends with an error; the message has its own words without credentials.
    """
    temporary_directory()  # pip needs one, and says so in a traceback
    reader, writer = os.pipe()
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            [sys.executable, "-c", _PROGRAM, "--disable-pip-version-check", *arguments],
            stdin=reader,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PIP_NO_INPUT": "1"},
        )
    finally:
        os.close(reader)
        os.close(writer)
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")]
        warnings = [line for line in lines if line.startswith("WARNING") and _TELLING.search(line)]
        reason = "; ".join(dict.fromkeys((*warnings[-1:], *errors[-1:])))
        reason = reason or " ".join(lines[-1:]) or f"exit {done.returncode}"
        raise PullFailed(
            f"pip does not find {arguments[-1]}: {without_credentials(reason)}. Check the network "
            "and pip's settings (index, credentials, certificate, proxy)."
        )
    return done.stdout
