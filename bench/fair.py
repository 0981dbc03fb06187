"""Fairness between keys: polite tenants with and without a greedy one beside them.

    python -m bench.fair                     in virtual time: the order of work alone, exact
    python -m bench.fair --served            a real server, interleaved rounds

Nineteen polite tenants send queries and small bulk at random times, at a rate that the server can
carry. The greedy one sends as much as it can on many connections: bulk, or queries. The figures are
the p99 of the polite beside the greedy, over their p99 without the greedy, and what the greedy
computes beside them, over what it computes without them. On a machine of few cores the clients of
`--served` take cores from the server, so that its ratios say less than those of virtual time.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from bench.fair_load import Load, Seen, p99_ms
from bench.fair_served import served
from bench.fair_virtual import simulate


def row(name: str, alone: Seen, beside: Seen, greedy_alone: float) -> str:
    """A line of the table."""
    parts = [name.ljust(28)]
    for kind in ("queries_s", "bulk_s"):
        before, after = p99_ms(getattr(alone, kind)), p99_ms(getattr(beside, kind))
        parts.append(f"{before:8.1f} {after:8.1f} {after / before:6.2f}" if before else " " * 24)
    every = p99_ms(alone.queries_s + alone.bulk_s), p99_ms(beside.queries_s + beside.bulk_s)
    parts.append(f"{every[0]:8.1f} {every[1]:8.1f} {every[1] / every[0]:6.2f}")
    tokens = sum(beside.greedy_tokens.values())
    parts.append(f"{tokens / greedy_alone if greedy_alone else 0:6.2f} {beside.refused:8d}")
    return "  ".join(parts)


HEAD = (
    " " * 28
    + "  ".join(f"{f'{kind}: p99 ms, beside, ratio':>24}" for kind in ("queries", "bulk", "all"))
    + "   greedy  refused"
)


def virtual(seconds: float) -> None:
    """Print what the order of work does."""
    print(HEAD)
    for cores, bulk_part in itertools.product((2, 8), (0.0, 0.1, 0.2)):
        load = Load(seconds, rate=9.5 * cores, bulk_part=bulk_part, connections=8 * cores)
        alone = simulate(load, "none", cores=cores)
        for greed in ("bulk", "queries"):
            idle = Load(seconds, rate=0.0, bulk_part=0.0, connections=load.connections)
            most = sum(simulate(idle, greed, cores=cores).greedy_tokens.values())
            beside = simulate(load, greed, cores=cores)
            print(row(f"{cores} cores, {bulk_part:.0%} bulk, {greed}", alone, beside, most))
    for greed in ("bulk", "queries"):
        load = Load(seconds, rate=0.0, bulk_part=0.0)
        tokens = simulate(load, greed, cores=2, weights=(2.0, 1.0)).greedy_tokens
        ratio = tokens["greedy-0"] / tokens["greedy-1"]
        print(f"weights 2 and 1, {greed}: {ratio:.2f} times the tokens")


def main(flags_given: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--served", action="store_true", help="measure a real server")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rate", type=float, default=12, help="polite requests a second")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(flags_given)
    if not given.served:
        virtual(given.seconds)
        return
    print(HEAD)
    load = Load(given.seconds, given.rate, 0.1, greedy_texts=16)
    for greed, alone, beside, most in served(given.model, given.precision, load, given.rounds):
        print(row(f"served, {greed}", alone, beside, most))


if __name__ == "__main__":
    main()
