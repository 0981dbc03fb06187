"""Mutated calls of every method of the gRPC port, over real sockets.

    .venv/bin/python -m tests.fuzz_grpc --count 10000 [--seed 0]

A server with fake engines runs in a process of its own. A call passes if the call ends within
`SECONDS`, and not with UNKNOWN or INTERNAL. A call with the text at which the engine fails must end
with INTERNAL. After every `ROUND` calls the server must be SERVING, give the right vector, hold no
memory and no work, have logged no error but those of the engine, and have grown by less than
`MEMORY_BYTES`. The same seed always gives the same calls. `--only INDEX` makes one of the calls and
prints its end.

Some calls break the rules of HTTP/2 or of gRPC's heads. gRPC's library answers these before the
server sees a call, and its specification asks for INTERNAL. Such calls only have to end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import requests

from matryo.core.logging import configure
from matryo.core.progress import TerminalReporter
from matryo.engine import TokenIds
from tests.contract import wire
from tests.fakes import MINILM, FakeEngine
from tests.mutated_calls import FAULT, SECONDS, Caller, is_fault, one

WARM_UP = 200
ROUND = 500
MEMORY_BYTES = 150 << 20
_FAILED = r'matryo_requests_total{door="grpc",.*?,status="(?:INTERNAL|UNKNOWN)"}'
"""The metric of calls that ended as faults of the server."""


class FailingEngine(FakeEngine):
    """A fake engine that fails at the word `FAULT`."""

    def __init__(self) -> None:
        super().__init__()
        (found,) = self.tokenize([FAULT])
        self._at = found.ids[1]
        self.delay_s = 0.001
        self.before = self._check

    def _check(self, batch: Sequence[TokenIds]) -> None:
        if any(self._at in ids for ids in batch):
            raise ValueError(FAULT)


def serve() -> None:
    """Serve until standard input ends; the first line of output has the ports."""
    from tests.contract.conftest import live_server

    configure("warning", "json")
    with live_server(
        [FailingEngine(), FakeEngine(MINILM)],
        grpc_port=0,
        max_body_bytes=1 << 20,
        memory_budget_bytes=256 << 20,
        body_timeout_s=0.3,
        keep_alive_s=0.5,
        log_level="warning",
    ) as live:
        ports = {"grpc": live.application.state.grpc_server.port, "http": live.port}
        sys.stdout.write(json.dumps(ports) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


class Server:
    """The server in a process of its own; a context manager.

    Attributes:
        port: for gRPC.
    """

    def __enter__(self) -> Self:
        """Start the server."""
        # gRPC's library logs what peers do wrong, unless it is told not to before it is loaded.
        env = os.environ | {"GRPC_VERBOSITY": "NONE"}
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.fuzz_grpc", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
        )
        assert self._process.stdout
        ports = json.loads(self._process.stdout.readline())
        self.port, self._url = ports["grpc"], f"http://127.0.0.1:{ports['http']}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server, which must end by itself."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._log.close()

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the server."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def metric(self, name: str) -> float:
        """The sum of the metrics whose name and labels match a pattern."""
        page = requests.get(f"{self._url}/metrics", timeout=SECONDS).text
        return sum(map(float, re.findall(rf"^{name} (\S+)$", page, re.MULTILINE)))

    def errors(self) -> Iterator[str]:
        """Errors of the log so far that the engine is not the cause of."""
        self._log.seek(0)
        for line in self._log.read().decode(errors="replace").splitlines():
            if line.startswith("{"):
                said = json.loads(line)
                if FAULT not in said.get("exception", "") + said["message"]:
                    yield line
            else:
                yield line


@dataclass
class Report:
    """The outcome.

    Attributes:
        ends: number of calls with each end.
        faults: what was wrong.
        grown_bytes: most memory of the server beyond that of the first calls.
    """

    ends: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    grown_bytes: int = 0


def fuzz(count: int, seed: int = 0) -> Report:
    """Make so many calls; see the top of this file."""
    report = Report()
    with Server() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        caller = Caller(server.port, channel)
        for index in range(WARM_UP):
            one(index, seed, caller)
        n_failed = server.metric(_FAILED)
        before = server.rss_bytes
        for first in range(0, count, ROUND):
            for index in range(first, min(count, first + ROUND)):
                end = one(index, seed, caller)
                report.ends[end] += 1
                if is_fault(end):
                    report.faults.append(f"--seed {seed} --only {index}: {end}")
            report.faults += _unwell(server, caller)
            report.grown_bytes = max(report.grown_bytes, server.rss_bytes - before)
        if report.grown_bytes > MEMORY_BYTES:
            report.faults.append(f"{report.grown_bytes >> 20} MiB more memory than before")
        n_failed = int(server.metric(_FAILED) - n_failed)
        if n_failed != report.ends["fault: injected"]:
            report.faults.append(f"{n_failed} calls were logged as faults of the server")
        report.faults += server.errors()
    return report


def _unwell(server: Server, caller: Caller) -> Iterator[str]:
    """What is wrong with the server between calls."""
    call: Any = caller.channel.unary_unary("/tei.v1.Embed/Embed")
    found = wire.floats(wire.fields_of(call(wire.field(1, "a b"), timeout=SECONDS))[1][0])
    if not np.array_equal(found, FakeEngine().expected("search_document: a b")):
        yield "another vector than before"
    check: Any = caller.channel.unary_unary("/grpc.health.v1.Health/Check")
    end = time.monotonic() + SECONDS
    for name, state in (
        ("held memory", lambda: server.metric(r"matryo_memory_held_bytes{.*?}")),
        ("queued tokens", lambda: server.metric(r"matryo_queue_tokens(?:{.*?})?")),
        ("no health", lambda: check(b"", timeout=SECONDS) != wire.field(1, 1)),
    ):
        while state():
            if time.monotonic() > end:
                yield f"{name} between calls: {state()}"
                break
            time.sleep(0.05)


def main() -> None:
    """Make the calls, and print what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="make this call alone, and print its end")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    say = TerminalReporter().say
    if given.only is not None:
        with Server() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            say(one(given.only, given.seed, Caller(server.port, channel)))
        return
    started = time.monotonic()
    report = fuzz(given.count, given.seed)
    for end, count in sorted(report.ends.items()):
        say(f"{count:6} {end}")
    spent = time.monotonic() - started
    say(
        f"grpc: {given.count} calls, {len(report.faults)} faults, "
        f"{report.grown_bytes >> 20} MiB of growth, {spent:.0f} s"
    )
    for fault in report.faults[:50]:
        say(f"  {fault}")
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
