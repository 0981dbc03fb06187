"""Requests a second of a server whose engine costs nothing, against a bare FastAPI echo.

    python -m bench.requests --seconds 2 --rounds 5

Every round measures the echo, then the server, at each number of keep-alive connections; a ratio is
the median over the rounds of the server's value over that of the echo in the same round. Requests
are one short text; answers hold 768 numbers, which the echo's do not. `CPU` is the processor time
of the server's processes for a request: it holds where clients share the cores with the servers.
With `--processes N` a third server has N processes, and its ratios are those to the one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from bench.busy import keep_busy, request_bytes
from bench.service import Service
from matryo.commands.bench.clients import body

_WARM_UP_S = 0.2
_TEXT = "What does the sky look like after the rain?"
ECHO, OURS = "echo", "matryo"


@dataclass(frozen=True, slots=True)
class Found:
    """One measurement.

    Attributes:
        per_s: requests answered in a second.
        cpu_us: processor time of the server for a request, in microseconds.
        p50_ms, p99_ms: latencies.
    """

    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


def echo_app() -> FastAPI:
    """A FastAPI application that answers with the JSON it was sent."""
    application = FastAPI()

    @application.post("/v1/embeddings")
    async def echo(content: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - FastAPI calls the function
        return content

    @application.get("/readyz")
    async def ready() -> str:  # pyright: ignore[reportUnusedFunction] - as above
        return "ready"

    return application


def measure(service: Service, request: bytes, connections: int, seconds: float) -> Found:
    """The rate, cost and latencies of a server under some connections."""
    begin = time.perf_counter() + _WARM_UP_S
    pids = _family(service.pid)
    before_s = _cpu_s(pids)
    latencies = keep_busy(
        service.port,
        request,
        connections=connections,
        begin=begin,
        end=begin + seconds,
    )
    # The warm-up's share of the time is taken off.
    spent_s = (_cpu_s(pids) - before_s) * seconds / (seconds + _WARM_UP_S)
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return Found(
        len(latencies) / seconds,
        1e6 * spent_s / len(latencies),
        1000 * cuts[49],
        1000 * cuts[98],
    )


def _family(pid: int) -> list[int]:
    """A process and those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor time that some processes have taken, in seconds."""
    spent = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += int(fields[11]) + int(fields[12])
    return spent / os.sysconf("SC_CLK_TCK")


def table(found: Mapping[str, Sequence[Found]], bases: Mapping[str, str]) -> str:
    """The medians of some servers, and the ratios of each to its base.

    Args:
        found: the measurements by server, one for each round.
        bases: which server each server is held against.
    """
    rows = [("", "requests/s", "ratio", "CPU, µs", "ratio", "p50, ms", "p99, ms")]
    for name, ours in found.items():
        theirs = found[bases[name]]
        rates, costs = (
            statistics.median(
                getattr(one, field) / getattr(other, field)
                for one, other in zip(ours, theirs, strict=True)
            )
            for field in ("per_s", "cpu_us")
        )
        per_s, cpu_us, p50_ms, p99_ms = (
            statistics.median(getattr(one, field) for one in ours)
            for field in ("per_s", "cpu_us", "p50_ms", "p99_ms")
        )
        rows.append(
            (
                name,
                f"{per_s:.0f}",
                f"{rates:.2f}",
                f"{cpu_us:.0f}",
                f"{costs:.2f}",
                f"{p50_ms:.2f}",
                f"{p99_ms:.2f}",
            )
        )
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{row[0]:<{width}}  " + "  ".join(f"{cell:>10}" for cell in row[1:]) for row in rows
    )


def main(flags_given: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each number of connections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--encoding", choices=("base64", "float"), default="base64")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(flags_given)
    if given.echo:
        uvicorn.run(echo_app(), port=given.port, log_level="warning", access_log=False)
        return
    request = request_bytes("/v1/embeddings", body(_TEXT, encoding_format=given.encoding))
    ours = (sys.executable, "-m", "bench.instant")
    services = {
        ECHO: Service("--echo", command=(sys.executable, "-m", "bench.requests")),
        OURS: Service(command=ours),
    }
    bases = {ECHO: ECHO, OURS: ECHO}
    if given.processes > 1:
        name = f"{OURS} x {given.processes}"
        services[name] = Service("--processes", str(given.processes), command=ours)
        bases[name] = OURS
    with ExitStack() as stack:
        for service in services.values():
            stack.enter_context(service)
        for connections in given.connections:
            found: dict[str, list[Found]] = {name: [] for name in services}
            for _ in range(given.rounds):
                for name, service in services.items():
                    found[name].append(measure(service, request, connections, given.seconds))
            print(f"\n{connections} connections, {given.encoding}\n")
            print(table(found, bases))


if __name__ == "__main__":
    main()
