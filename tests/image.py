"""Builds the container image over a debootstrapped Debian, and runs the image: `python -m tests.image`.

No container engine is needed: buildah builds, and a read-only chroot runs. Each run has a user
without an entry in /etc/passwd. The health check must pass although every proxy variable names a
dead address, and SIGTERM must end the server with status 0.

It needs root, and the Debian packages buildah and debootstrap. FLAGS is added to buildah's
arguments; a machine whose package index needs settings of its own mounts them with FLAGS.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MODEL = "all-minilm-l6-v2"
_BASE, _IMAGE = "localhost/matryo-base", "localhost/matryo-tested"
_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_PACKAGES = "python3,python3-venv,ca-certificates"
# The user of the image, one as OpenShift chooses it, and another. The group is 0, as OpenShift has it.
_USERS = (10001, 1_000_660_000, 54_321)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_DEAD = "http://127.0.0.1:9"
_LABELS = ("title", "version", "revision", "licenses", "created", "source")
_READY_S, _END_S = 120.0, 60.0


def _output(*command: str | Path) -> str:
    """What a program that must succeed writes to standard output."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


@contextmanager
def _container(image: str) -> Generator[str, None, None]:
    """A container of an image, removed at the end."""
    container = _output("buildah", "from", image)
    try:
        yield container
    finally:
        _output("buildah", "rm", container)


def make_base() -> None:
    """Make the image of a small Debian with Python, if there is none yet."""
    if _BASE in _output("buildah", "images", "--format", "{{.Name}}").splitlines():
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, _container("scratch") as container:
        root = Path(folder) / "root"
        options = ("--variant=minbase", f"--include={_PACKAGES}")
        subprocess.run(["debootstrap", *options, _SUITE, root, _MIRROR], check=True)
        subprocess.run(["chroot", root, "apt-get", "clean"], check=True)
        _output("buildah", "add", "-q", container, root, "/")
        _output("buildah", "commit", "-q", container, _BASE)


def build() -> None:
    """Build the image with the script that `make image` runs."""
    given = {"BUILDER": "buildah", "BASE": _BASE, "MODEL": _MODEL, "IMAGE": _IMAGE}
    flags = f"--isolation chroot --network host {os.environ.get('FLAGS', '')}"
    environment = os.environ | given | {"FLAGS": flags}
    subprocess.run([".ci/image"], env=environment, cwd=ROOT, check=True)


@dataclass(frozen=True)
class Image:
    """An image whose files are mounted.

    Attributes:
        root: of the files.
        config: user, environment, command, health check and labels.
    """

    root: Path
    config: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a container, which has nothing of this machine's."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    def check_labels(self) -> None:
        """Every label that images should have is there, and so is the list of the contents."""
        labels = self.config["Labels"]
        missing = {name for name in _LABELS if f"org.opencontainers.image.{name}" not in labels}
        assert not missing, missing
        listed = json.loads((self.root / "opt/venv/sbom.cdx.json").read_text())
        names = {component["name"] for component in listed["components"]}
        assert {"onnxruntime", "matryo-native", "numpy"} <= names, names
        assert listed["metadata"]["component"]["version"], listed["metadata"]
        assert self.config["User"].split(":")[0] not in {"", "0", "root"}

    def inside(self, user: int) -> list[str]:
        """How to run a program in the files, in a mount namespace that has them read-only."""
        return ["chroot", f"--userspec={user}:0", str(self.root), "env", "-i"]


@contextmanager
def _mounted() -> Generator[Image, None, None]:
    with _container(_IMAGE) as container:
        told = json.loads(_output("buildah", "inspect", "--type", "image", _IMAGE))
        yield Image(Path(_output("buildah", "mount", container)), told["Docker"]["config"])


def run_as(image: Image, user: int, *, has_tmp: bool, **settings: str) -> float:
    """Run the image's command as a user, check its health, and end it; returns seconds to readiness.

    Args:
        image: to run.
        user: the user's number.
        has_tmp: whether /tmp is writable; everything else is read-only.
        settings: of the server.
    """
    root = shlex.quote(str(image.root))
    mounts = [
        f"mount --rbind {root} {root}",
        f"mount -o remount,bind,ro {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        *([f"mount -t tmpfs tmpfs {root}/tmp"] if has_tmp else []),  # noqa: S108 - the image's
        'exec "$@"',
    ]
    variables = image.environment | dict.fromkeys(_PROXIES, _DEAD) | settings
    given = [f"{name}={value}" for name, value in variables.items()]
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command = [*image.inside(user), *given, *image.config["Cmd"]]
    begun = time.monotonic()
    with subprocess.Popen([*apart, "sh", "-ec", " && ".join(mounts), "sh", *command]) as outer:
        try:
            _wait_healthy(image, outer, user, given)
            ready_s = time.monotonic() - begun
            os.kill(_child(outer.pid), signal.SIGTERM)
            status = outer.wait(_END_S)
        finally:
            outer.kill()
    assert status == 0, f"user {user}: status {status} after SIGTERM"
    return ready_s


def _child(pid: int) -> int:
    """The process that has the id 1 in the container."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _wait_healthy(
    image: Image, outer: subprocess.Popen[bytes], user: int, given: list[str]
) -> None:
    """Run the image's health check in the container until it passes."""
    kind, *check = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    deadline = time.monotonic() + _READY_S
    while True:
        assert outer.poll() is None, f"user {user}: the server ended with {outer.returncode}"
        assert time.monotonic() < deadline, f"user {user}: not healthy after {_READY_S:.0f} s"
        try:
            enter = ["nsenter", "-t", str(_child(outer.pid)), "--mount", "--pid"]
        except IndexError:  # not forked yet
            continue
        command = [*enter, *image.inside(user), *given, *check]
        done = subprocess.run(command, check=False, capture_output=True)
        if done.returncode == 0:
            return


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def main() -> None:
    """Build, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-build", action="store_true", help="run the image of the last build")
    given = parser.parse_args()
    programs = ("buildah", "debootstrap")
    if missing := [program for program in programs if not shutil.which(program)]:
        sys.exit(f"packages are missing: apt-get install {' '.join(missing)}")
    if not given.no_build:
        make_base()
        build()
    with _mounted() as image:
        image.check_labels()
        for user in _USERS:
            seconds = run_as(image, user, has_tmp=True, MATRYO_PORT=_free_port())
            sys.stdout.write(f"user {user}: healthy after {seconds:.1f} s, ended with status 0\n")
        run_as(image, _USERS[0], has_tmp=False, MATRYO_PORT=_free_port())
        run_as(image, _USERS[0], has_tmp=True, MATRYO_UDS="/tmp/matryo.sock")  # noqa: S108
        two = {"MATRYO_PROCESSES": "2", "MATRYO_GRPC_PORT": _free_port()}
        run_as(image, _USERS[1], has_tmp=True, MATRYO_PORT=_free_port(), **two)
        sys.stdout.write("a read-only /tmp, a Unix socket, two processes with gRPC: the same\n")


if __name__ == "__main__":
    main()
