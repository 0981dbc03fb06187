"""Trials of files from elsewhere in a process of their own: `python -m matryo.build.trial`.

A graph or a tokenizer of another tool may ask for any amount of memory, never end, or crash the
library that reads it. The process has a limit of memory and of time, and a crash ends that process
alone.

The job is one line of JSON on standard input. The result is one line on standard output. Standard
input stays open while the job runs: the process ends if the parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from matryo.build import limits
from matryo.build.texts import TEXTS
from matryo.build.tokenizer import TokenizerFile
from matryo.catalog.manifest import Manifest
from matryo.core.errors import BuildFailed, CheckpointMismatch, MatryoError
from matryo.core.lifetime import end_with_parent

if TYPE_CHECKING:
    from matryo.build.check import Agreement

_ERRORS = {error.__name__: error for error in (BuildFailed, CheckpointMismatch)}


class _Failed(Exception):
    """A trial without a result; the text says why."""


def try_graph(graph: Path, n_bytes: int, tokenizer: Path, manifest: Manifest) -> Agreement:
    """`check_graph` of a ready graph in a process of its own.

    Args:
        graph: the graph; its data files are beside it.
        n_bytes: bytes of all of these files.
        tokenizer: `tokenizer.json`.
        manifest: the model.

    Raises:
        BuildFailed: as `check_graph`; or the trial crashed, or took too long.
        CheckpointMismatch: as `check_graph`.
    """
    from matryo.build.check import Agreement

    job = {
        "memory_bytes": limits.TRIAL_MEMORY_BYTES + 3 * n_bytes,
        "tokenizer": str(tokenizer),
        "graph": str(graph),
        "manifest": manifest.model_dump_json(),
    }
    try:
        return Agreement(**_run(job))
    except _Failed as exc:
        raise BuildFailed(
            f"ONNX Runtime cannot run the graph: it {exc}. Give another --checkpoint."
        ) from exc


def try_tokenizer(path: Path) -> None:
    """Read a `tokenizer.json` and encode a few texts in a process of its own.

    Raises:
        CheckpointMismatch: the file is no tokenizer; or the trial crashed, or took too long.
    """
    try:
        _run({"memory_bytes": limits.TRIAL_MEMORY_BYTES, "tokenizer": str(path)})
    except _Failed as exc:
        raise CheckpointMismatch(
            f"{path} is not a tokenizer: the library that reads it {exc}. Put the tokenizer.json "
            "of the model beside the weights."
        ) from exc


def _run(job: Mapping[str, object]) -> dict[str, Any]:
    """The result of a job.

    Raises:
        BuildFailed, CheckpointMismatch: the file was refused.
        _Failed: there is no result.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "matryo.build.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what a crashing library prints is no message
        text=True,
    ) as child:
        late = threading.Event()
        timer = threading.Timer(limits.TRIAL_SECONDS, _end_late, (child, late))
        timer.start()
        try:
            to_child, from_child = cast("IO[str]", child.stdin), cast("IO[str]", child.stdout)
            with contextlib.suppress(BrokenPipeError):  # its exit status says more
                to_child.write(json.dumps(job) + "\n")
                to_child.flush()
            answer = from_child.read()
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
            with contextlib.suppress(BrokenPipeError):
                cast("IO[str]", child.stdin).close()
    if late.is_set():
        raise _Failed(f"took more than {limits.TRIAL_SECONDS:g} s for a few short texts")
    status = child.returncode
    if status or not answer:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise _Failed(f"crashed, or needed too much memory ({how})")
    found = cast("dict[str, Any]", json.loads(answer))
    if "error" in found:
        raise _ERRORS[found["error"]](found["message"])
    return found


def _end_late(child: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    child.kill()


# --- the process of a trial


def main() -> None:
    """Run the job on standard input, and write its result."""
    job = json.loads(sys.stdin.readline())
    # A library that prints something must not spoil the result.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    end_with_parent(lambda: os.read(sys.stdin.fileno(), 1), 0)
    _limit_memory(job["memory_bytes"])
    try:
        result = _do(job)
    except MatryoError as exc:
        result = {"error": type(exc).__name__, "message": exc.message}
    answer.write(json.dumps(result))
    answer.flush()
    os._exit(0)  # a thread still waits for the parent, and a library may crash while it is unloaded


def _do(job: dict[str, Any]) -> dict[str, Any]:
    path = Path(job["tokenizer"])
    if "graph" not in job:
        TokenizerFile(path).encode(TEXTS)
        return {}
    from matryo.build.check import check_graph  # ONNX Runtime, which a tokenizer does not need

    manifest = Manifest.model_validate_json(job["manifest"])
    special = manifest.tokenizer.add_special_tokens
    tokenizer = TokenizerFile(path, add_special_tokens=special)
    return asdict(check_graph(Path(job["graph"]), tokenizer, None, manifest, "fp32"))


def _limit_memory(n_bytes: int) -> None:
    """Limit the memory that this process may allocate; what it maps of files is not counted."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
    with contextlib.suppress(OSError, ValueError):  # not on macOS
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
