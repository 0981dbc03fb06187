"""What tracing costs a request: off, on with no request sampled, on with every request sampled.

    python -m bench.tracing --seconds 3 --rounds 5 --against ../other/app

Every round measures each server at the same keep-alive connections, with one short text a request
and an engine that costs nothing. A ratio is the median over the rounds of a server's value over
that of the server without tracing in the same round. `CPU` is the processor time of the server's
process for a request, the thread that exports included. The collector is a stand-in in this
process, whose time does not count. `--against` adds the package in another folder, without tracing.
Needs matryo[otel].
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.busy import request_bytes
from bench.requests import Found, measure, table
from bench.service import Service
from matryo.commands.bench.clients import body
from tests.collector import collecting

_TEXT = "What does the sky look like after the rain?"
OFF, NONE, ALL, OTHER = "off", "on, none sampled", "on, all sampled", "another package, off"


def main(flags_given: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each number of connections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--against", type=Path, help="folder with another package matryo")
    given = parser.parse_args(flags_given)
    request = request_bytes("/v1/embeddings", body(_TEXT, encoding_format="base64"))
    command = (sys.executable, "-m", "bench.instant")
    with collecting() as collector, ExitStack() as stack:
        on = {"MATRYO_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        environs: dict[str, dict[str, str]] = {
            OFF: {},
            NONE: on | {"OTEL_TRACES_SAMPLER": "always_off"},
            ALL: on | {"OTEL_TRACES_SAMPLER": "always_on"},
        }
        if given.against:
            environs[OTHER] = {"PYTHONPATH": f"{given.against.resolve()}{os.pathsep}."}
        services = {
            name: stack.enter_context(Service(environ=environ, command=command))
            for name, environ in environs.items()
        }
        for connections in given.connections:
            found: dict[str, list[Found]] = {name: [] for name in services}
            for _ in range(given.rounds):
                for name, service in services.items():
                    found[name].append(measure(service, request, connections, given.seconds))
            print(f"\n{connections} connections, {len(collector.spans)} spans taken so far\n")
            print(table(found, dict.fromkeys(services, OFF)))


if __name__ == "__main__":
    main()
