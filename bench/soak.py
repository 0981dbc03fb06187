"""An hour of mixed load and abuse on one server: does its memory stay flat?

    .venv/bin/python -m bench.soak --model all-minilm-l6-v2 --seconds 3600 --output out/soak.md

A few clients send texts of all lengths without a pause. Beside them the scenarios of `bench.abuse`
come one after another, in a random order from a seed. The table has the resident memory of each
eighth of the time; memory that leaks grows from row to row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench.abuse import SCENARIOS, Seen, ask, log_file, many_files, request
from bench.service import Service
from bench.watch import rss_mb

_PARTS = 8
_SAMPLE_S = 1.0
_SCENARIO_S = 8.0


async def _clients(port: int, end: float, seen: Seen, dice: random.Random) -> None:
    """Four clients with texts of one word to some thousands."""

    async def client() -> None:
        while time.monotonic() < end:
            texts = [
                "sky " * int(10 ** dice.uniform(0, 3.3)) for _ in range(dice.choice((1, 1, 8, 64)))
            ]
            body = json.dumps({"input": texts, "truncate": True}).encode()
            await ask(port, request(body), seen)
            await asyncio.sleep(dice.uniform(0, 0.2))

    await asyncio.gather(*(client() for _ in range(4)))


async def _abuse(port: int, end: float, seen: Seen, dice: random.Random) -> None:
    """The scenarios, each in a round of its own order."""
    while True:
        for name in dice.sample(list(SCENARIOS), len(SCENARIOS)):
            if time.monotonic() + 3 * _SCENARIO_S > end:
                return
            await SCENARIOS[name](port, _SCENARIO_S, seen)


async def _sample(pid: int, end: float, rss: list[float]) -> None:
    while time.monotonic() < end:
        rss.append(rss_mb(pid))
        await asyncio.sleep(_SAMPLE_S)


def table(rss: Sequence[float]) -> str:
    """Memory of each eighth of the time, as a table in Markdown; MB."""
    lines = ["| eighth | least | median | largest |", "|---|---|---|---|"]
    for part in range(_PARTS):
        some = rss[part * len(rss) // _PARTS : (part + 1) * len(rss) // _PARTS] or [0.0]
        lines.append(
            f"| {part + 1} | {min(some):.0f} | {statistics.median(some):.0f} | {max(some):.0f} |"
        )
    return "\n".join(lines)


def main(flags_given: Sequence[str] | None = None) -> None:
    """Run the soak, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--settle", type=float, default=120, help="seconds before RSS after")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file of the table")
    arguments = parser.parse_args(flags_given)
    flags = ("--model", arguments.model, "--precision", arguments.precision)
    rss: list[float] = []
    good, bad = Seen(), Seen()
    with log_file() as log:
        with Service(*flags, log=log) as service, many_files():
            idle, end = service.rss_mb, time.monotonic() + arguments.seconds

            async def run() -> None:
                dice = random.Random(arguments.seed)
                await asyncio.gather(
                    _clients(service.port, end, good, dice),
                    _abuse(service.port, end, bad, dice),
                    _sample(service.pid, end, rss),
                )

            asyncio.run(run())
            time.sleep(arguments.settle)
            after = rss_mb(service.pid)
        text = Path(log.name).read_text(errors="replace")
    facts = (
        f"Idle {idle:.0f} MB; {after:.0f} MB {arguments.settle:.0f} s after the end. Statuses of "
        f"the clients: {dict(good.statuses)}; of the others: {dict(bad.statuses)}. Raw: "
        f"{dict(good.raw + bad.raw)}; tracebacks in the log: {text.count('Traceback')}."
    )
    report = f"{table(rss)}\n\n{facts}"
    print(report)
    if arguments.output:
        arguments.output.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
