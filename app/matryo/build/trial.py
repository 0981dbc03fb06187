"""The trial of a ready graph in a process of its own: `python -m matryo.build.trial`.

A graph of another tool may ask for any amount of memory, never end, or crash ONNX Runtime. The
process has a limit of memory and of time, and a crash ends that process alone.

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
from dataclasses import asdict
from pathlib import Path
from typing import IO, cast

from matryo.build import limits
from matryo.build.check import Agreement, check_graph
from matryo.build.tokenizer import TokenizerFile
from matryo.catalog.manifest import Manifest
from matryo.core.errors import BuildFailed, CheckpointMismatch, MatryoError

_ERRORS = {error.__name__: error for error in (BuildFailed, CheckpointMismatch)}


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
    job = {
        "graph": str(graph),
        "memory_bytes": limits.TRIAL_MEMORY_BYTES + 3 * n_bytes,
        "tokenizer": str(tokenizer),
        "manifest": manifest.model_dump_json(),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "matryo.build.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what a crashing library prints is no message
        text=True,
    ) as child:
        timer = threading.Timer(limits.TRIAL_SECONDS, child.kill)
        timer.start()
        try:
            to_child, from_child = cast("IO[str]", child.stdin), cast("IO[str]", child.stdout)
            with contextlib.suppress(BrokenPipeError):  # its exit status says more
                to_child.write(json.dumps(job) + "\n")
                to_child.flush()
            answer = from_child.read()
            timed_out = not timer.is_alive()
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close() if child.stdin else None
    return _result(answer, child.returncode, timed_out=timed_out)


def _result(answer: str, status: int, *, timed_out: bool) -> Agreement:
    """The result of a trial.

    Raises:
        BuildFailed, CheckpointMismatch: the trial failed.
    """
    if timed_out:
        raise BuildFailed(
            f"ONNX Runtime did not run the graph on a few short texts within "
            f"{limits.TRIAL_SECONDS:g} s. Give another --checkpoint."
        )
    if status or not answer:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise BuildFailed(
            f"ONNX Runtime crashed on the graph, or needs too much memory ({how}). Give another "
            "--checkpoint."
        )
    found = json.loads(answer)
    if "error" in found:
        raise _ERRORS[found["error"]](found["message"])
    return Agreement(**found)


def main() -> None:
    """Run the job on standard input, and print its result."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _limit_memory(job["memory_bytes"])
    try:
        agreement = check_graph(
            Path(job["graph"]),
            TokenizerFile(Path(job["tokenizer"])),
            None,
            Manifest.model_validate_json(job["manifest"]),
            "fp32",
        )
        result = asdict(agreement)
    except MatryoError as exc:
        result = {"error": type(exc).__name__, "message": exc.message}
    print(json.dumps(result), flush=True)  # noqa: T201 - the parent reads it
    os._exit(0)  # the thread below still waits, and a library may crash while it is unloaded


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _limit_memory(n_bytes: int) -> None:
    """Limit the memory that this process may allocate; what it maps of files is not counted."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
    with contextlib.suppress(OSError, ValueError):  # not on macOS
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    main()
