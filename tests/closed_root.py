"""Runs a bundle in a closed root: read-only but for a tmpfs, without a network, without Python.

    unshare -mn .venv/bin/python -m tests.closed_root FILE ROOT

ROOT is a folder that becomes the root: one of `make_root`, or one that debootstrap made. Needs root
and util-linux. Prints one JSON object: the bits of the texts' vectors by every way in.

What this cannot show is another kernel, an older C library than this machine's, and security modules
of a distribution, such as SELinux.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import requests

from matryo.grpc.messages import make

TEXTS = ("The quick brown fox jumps over the lazy dog.", "Grass is green.")
TMPFS = "size=256m,exec"
_PORT, _GRPC_PORT = 8080, 50051
_ANSWER_S = 60.0
_PREDICT = "/encoderfile.sentence_embedding.SentenceEmbeddingInference/Predict"
_MESSAGES = "encoderfile.sentence_embedding.SentenceEmbedding"
# Names of the files that glibc consists of, without versions.
_GLIBC = frozenset(
    (
        *("ld-linux-x86-64", "ld-linux-aarch64", "libc", "libdl", "libm", "libpthread", "librt"),
        *("libresolv", "libutil"),
    )
)


def make_root(root: Path, code: Path) -> None:
    """Make a root of nothing but the files of glibc that a bundle's code needs.

    Args:
        root: the new folder.
        code: the unpacked code.

    Raises:
        AssertionError: the code needs something else of this machine.
    """
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir(parents=True)
    for path in sorted(_needed(code)):
        assert path.name.split(".so")[0] in _GLIBC, f"the bundle needs {path} of its machine"
        (root / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to("/"))


def _needed(code: Path) -> set[Path]:
    """Libraries outside of the code that its programs are linked with."""
    programs = [code / "matryo", *sorted(code.rglob("*.so*"))]
    done = subprocess.run(
        ["ldd", *map(str, programs)],
        env=os.environ | {"LD_LIBRARY_PATH": str(code / "_internal")},  # as the program has it
        capture_output=True,
        text=True,
        check=False,
    )
    words = (word for line in done.stdout.splitlines() for word in line.split())
    paths = {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}
    return {path for path in paths if not path.is_relative_to(code)}


def main() -> None:
    """Close the root, and ask the bundle in it by every way."""
    file, root = map(Path, sys.argv[1:])
    _switch_loopback_on()
    inside = _close(file, root)
    embedded = _say(inside, "embed", "\n".join(TEXTS)).splitlines()
    found = {"embed": _hex([json.loads(line)["embedding"] for line in embedded])}
    assert "every byte is what was written" in _say(inside, "info")
    assert "passed" in _say(inside, "verify")
    print(json.dumps(found | _served(inside)))  # noqa: T201 - a program's output


def _say(inside: Sequence[str], command: str, given: str = "") -> str:
    done = subprocess.run(
        [*inside, command], input=given, env={}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def _hex(vectors: Sequence[Sequence[float]]) -> str:
    """The bits of vectors."""
    return np.array(vectors, np.float32).tobytes().hex()


def _switch_loopback_on() -> None:
    """What `ip link set lo up` does in a new network namespace."""
    flags_of, set_flags, is_up = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        name, flags, rest = struct.unpack("16sH14s", fcntl.ioctl(one, flags_of, request))
        fcntl.ioctl(one, set_flags, struct.pack("16sH14s", name, flags | is_up, rest))


def _close(file: Path, root: Path) -> list[str]:
    """Mount what belongs into the root, and the root read-only; returns how to run the bundle."""
    target = root / "bundle"
    target.touch()
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "--bind", str(root), str(root)],
        ["mount", "--bind", str(file), str(target)],
        ["mount", "--bind", "/dev", str(root / "dev")],  # gRPC reads /dev/urandom
        ["mount", "-t", "proc", "proc", str(root / "proc")],
        ["mount", "-t", "tmpfs", "-o", TMPFS, "tmpfs", str(root / "tmp")],
        ["mount", "-o", "remount,bind,ro", str(root)],
    ):
        subprocess.run(command, check=True)
    assert not os.access(root, os.W_OK)
    return [shutil.which("chroot") or "/usr/sbin/chroot", str(root), "/bundle"]


def _served(inside: Sequence[str]) -> dict[str, str]:
    """The vectors of a server in the root, by REST and by gRPC."""
    command = [*inside, "serve", "--port", str(_PORT), "--grpc-port", str(_GRPC_PORT)]
    with subprocess.Popen(command, env={}, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said = ""
        while '"ready: ' not in (line := server.stderr.readline()):
            assert line, f"the server ended: {said}"
            said += line
        try:
            return {"rest": _by_rest(), "grpc": _by_grpc()}
        finally:
            server.send_signal(signal.SIGTERM)


def _by_rest() -> str:
    url = f"http://127.0.0.1:{_PORT}/v1/embeddings"
    answer = requests.post(url, json={"input": TEXTS}, timeout=_ANSWER_S)
    return _hex([item["embedding"] for item in answer.json()["data"]])


def _by_grpc() -> str:
    request, response = make(f"{_MESSAGES}Request"), make(f"{_MESSAGES}Response")
    with grpc.insecure_channel(f"127.0.0.1:{_GRPC_PORT}") as channel:
        predict: Any = channel.unary_unary(_PREDICT, request.SerializeToString, response.FromString)
        answer = predict(request(inputs=TEXTS), timeout=_ANSWER_S)
    return _hex([result.embedding for result in answer.results])


if __name__ == "__main__":
    main()
