"""What the clients of `bench.fair` send, and what they see."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

POLITE = 19
Greed = Literal["none", "bulk", "queries"]
QUERY, BULK = (6, 20), (60, 140)
"""Tokens of a text of a query, and of bulk: at least and at most."""


@dataclass(frozen=True, slots=True)
class Load:
    """What clients send.

    Attributes:
        seconds: of the measurement.
        rate: requests a second of all polite tenants together.
        bulk_part: part of these requests that has `bulk_texts` texts and not one.
        bulk_texts: of a polite bulk request.
        connections: of the greedy tenant, with bulk; four times as many with queries.
        greedy_texts: of a bulk request of the greedy tenant.
    """

    seconds: float
    rate: float
    bulk_part: float
    bulk_texts: int = 8
    connections: int = 16
    greedy_texts: int = 64


@dataclass(slots=True)
class Seen:
    """What clients saw.

    Attributes:
        queries_s: latency of each polite query.
        bulk_s: latency of each polite bulk request.
        refused: polite requests that were answered with 429.
        greedy_tokens: tokens that were computed for each greedy tenant.
    """

    queries_s: list[float] = field(default_factory=list[float])
    bulk_s: list[float] = field(default_factory=list[float])
    refused: int = 0
    greedy_tokens: dict[str, int] = field(default_factory=dict[str, int])


def p99_ms(latencies_s: Sequence[float]) -> float:
    """The 99th percentile, in milliseconds."""
    if len(latencies_s) < 2:
        return 1000 * sum(latencies_s)
    return 1000 * statistics.quantiles(latencies_s, n=100, method="inclusive")[98]
