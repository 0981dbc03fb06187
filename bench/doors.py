"""The doors side by side: HTTP with JSON, base64 and bytes, TEI's route, and gRPC, in one run.

    .venv/bin/python -m bench.doors --model all-minilm-l6-v2 --seconds 10

Two servers are measured: one with an engine that costs nothing, which shows what a door costs
itself, and one of the model. Every round measures every way once, and a ratio is the median over
the rounds of the way's rate over that of base64 in the same round. Clients share the cores with the
server: on two cores, `CPU` tells more than the rate. `CPU` is the processor time of the server for
a text. Compare only numbers of one run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.corpus import debian_pairs
from bench.door_clients import BASE64, WAYS, Clients, Task
from bench.service import Service
from matryo.commands.bench.clients import body

_CONNECTIONS = 4
_TEXTS = 512
_SAMPLE = 128
_WARM_UP_S = 0.3


@dataclass(frozen=True)
class Case:
    """What is sent.

    Attributes:
        texts: all of them.
        size: texts of a request. A way that takes one text sends as many texts in more messages.
        ways: names of the ways that send them.
    """

    texts: Sequence[str]
    size: int
    ways: Sequence[str]


@dataclass
class Rates:
    """Measurements of one way, one for each round.

    Attributes:
        texts_per_s: texts that were answered.
        cpu_us: processor time of the server for a text.
    """

    texts_per_s: list[float] = field(default_factory=list[float])
    cpu_us: list[float] = field(default_factory=list[float])


def cases(queries: Sequence[str], documents: Sequence[str]) -> dict[str, Case]:
    """The cases by name: single texts, and batches."""
    single = [way for way in WAYS if WAYS[way].kind != "stream"]
    many = [way for way in WAYS if not WAYS[way].takes_one or WAYS[way].kind == "stream"]
    return {
        "one short text a request": Case(queries, 1, single),
        "16 texts a request": Case(documents, 16, many),
        "64 texts a request": Case(documents, 64, many),
    }


def measured(
    service: Service,
    grpc_port: int,
    given: Mapping[str, Case],
    clients: Clients,
    seconds: float,
    rounds: int,
) -> dict[str, dict[str, Rates]]:
    """The rates of every way of every case.

    Args:
        service: the server.
        grpc_port: of the server.
        given: the cases.
        clients: that send.
        seconds: of one measurement.
        rounds: measurements of each way.
    """
    rates = {name: {way: Rates() for way in case.ways} for name, case in given.items()}
    for n_round in range(rounds):
        for name, case in given.items():
            # What comes later may find another machine: every other round goes the other way.
            for way in case.ways[:: 1 if n_round % 2 == 0 else -1]:
                size = 1 if WAYS[way].takes_one else case.size
                bodies = [
                    WAYS[way].write(case.texts[start : start + size])
                    for start in range(0, len(case.texts), size)
                ]
                begin = time.monotonic() + max(_WARM_UP_S, seconds / 4)
                ends = begin, begin + seconds
                ports = service.port, grpc_port
                # Clients begin far from each other: the server computes equal texts that come
                # together once.
                starts = (n * len(bodies) // _CONNECTIONS for n in range(_CONNECTIONS))
                parts = (bodies[start:] + bodies[:start] for start in starts)
                clients.start([Task(way, ports, part, *ends) for part in parts])
                before, after = (_cpu_s(service, moment) for moment in ends)
                n_texts = size * clients.answers()
                rates[name][way].texts_per_s.append(n_texts / seconds)
                rates[name][way].cpu_us.append(1e6 * (after - before) / n_texts)
    return rates


def _cpu_s(service: Service, moment: float) -> float:
    """Processor time of the server at a moment, in seconds."""
    time.sleep(max(0.0, moment - time.monotonic()))
    fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tokens_of_a_text(port: int, texts: Sequence[str]) -> float:
    """The mean, as the server counts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    content = body(texts, encoding_format="base64", truncate=True)
    connection.request("POST", "/v1/embeddings", content, {"Content-Type": "application/json"})
    usage = json.load(connection.getresponse())["usage"]
    connection.close()
    return usage["prompt_tokens"] / len(texts)


def table(rates: Mapping[str, Rates], tokens: float | None) -> str:
    """The rates of one case, and their ratios to base64, as a table.

    Args:
        rates: by way.
        tokens: of a text; None for requests a second in place of tokens a second.
    """
    base = rates[BASE64]
    rows = [("", "tok/s" if tokens else "requests/s", "ratio", "CPU, µs", "ratio")]
    for way, found in rates.items():
        rate = statistics.median(found.texts_per_s) * (tokens or 1)
        pairs = ((found.texts_per_s, base.texts_per_s), (found.cpu_us, base.cpu_us))
        faster, cpu = (
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in pairs
        )
        spent = statistics.median(found.cpu_us)
        rows.append((way, f"{rate:.0f}", f"{faster:.2f}", f"{spent:.0f}", f"{cpu:.2f}"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{row[0]:<{width}}  " + "  ".join(f"{cell:>10}" for cell in row[1:]) for row in rows
    )


def texts_of(*, smoke: bool) -> tuple[list[str], list[str]]:
    """Queries and documents: real text, or a few made-up words."""
    if smoke:
        return [f"sky {n}" for n in range(8)], [f"the sky is blue {n}" for n in range(64)]
    pairs = debian_pairs(3000)[:_TEXTS]
    return [query for query, _ in pairs], [text for _, text in pairs]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def main(flags_given: Sequence[str] | None = None) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--instant", action="store_true", help="leave the model out")
    parser.add_argument("--smoke", action="store_true", help="a moment, without the model")
    given = parser.parse_args(flags_given)
    queries, documents = texts_of(smoke=given.smoke)
    seconds, rounds = (0.1, 1) if given.smoke else (given.seconds, given.rounds)
    grpc_port = _free_port()
    port = str(grpc_port)
    instant = Service(command=(sys.executable, "-m", "bench.instant", "--grpc-port", port))
    servers = {"an engine that costs nothing": instant}
    if not (given.smoke or given.instant):
        flags = ("--model", given.model, "--precision", given.precision)
        name = f"{given.model}, {given.precision}"
        servers[name] = Service(*flags, "--grpc-port", port)
    with Clients(_CONNECTIONS) as clients:
        for server, service in servers.items():
            with service:
                tokens = tokens_of_a_text(service.port, documents[:_SAMPLE])
                found = measured(
                    service, grpc_port, cases(queries, documents), clients, seconds, rounds
                )
            for name, rates in found.items():
                print(f"\n{server}; {name}\n")
                print(table(rates, None if name.startswith("one") else tokens))


if __name__ == "__main__":
    main()
