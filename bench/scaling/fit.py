"""A replica as a few tables, read off runs of the scheduler's own code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.cores import Machine
from bench.scaling.replica import CORES, QUERY_PART, Replica, Seen, capacity_of

Floats = NDArray[np.float64]

LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
"""Arriving tokens of queries and ingest, over the capacity."""
QUERY_LOADS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Arriving tokens of queries alone, beside bulk that always waits."""
AHEAD_S = (0.4, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Edges of the seconds of queries that are before a query, where queries alone are too many."""
BULK_WAITS_S = 0.5
_PARTS = np.linspace(0.0025, 0.9975, 200)


@dataclass(frozen=True, slots=True)
class Fit:
    """What the model of a fleet knows of a replica.

    Attributes:
        capacity: tokens a second of a busy replica.
        start_s: seconds of a batch, over the workers: what bulk takes of a second of queries.
        busy: busy part of the cores, by `LOADS`.
        backlog_s: seconds of backlog, by `LOADS`.
        times: 200 quantiles of the time of a query, a row for each of `LOADS`, then of
            `QUERY_LOADS`, then of the bins of `AHEAD_S`.
    """

    capacity: float
    start_s: float
    busy: Floats
    backlog_s: Floats
    times: Floats

    def busy_at(self, computed: Floats) -> Floats:
        """Busy part of the cores, by the part of the capacity that is computed."""
        return np.interp(computed, (0.0, *LOADS, 1.0), (0.0, *self.busy, 1.0))

    def rows(
        self, load: Floats, query_load: Floats, queries_s: Floats, bulk_s: Floats
    ) -> NDArray[np.intp]:
        """Which row of `times` holds for each of several replicas.

        Args:
            load: arriving tokens over the capacity.
            query_load: those of queries.
            queries_s: seconds of queries that wait.
            bulk_s: seconds of bulk that waits.
        """
        calm = _nearest(np.array(LOADS), load)
        beside = len(LOADS) + _nearest(np.array(QUERY_LOADS), query_load)
        crowded = len(LOADS) + len(QUERY_LOADS) + np.searchsorted(AHEAD_S[1:-1], queries_s)
        rows = np.where(bulk_s > BULK_WAITS_S, beside, calm)
        return np.where(queries_s > AHEAD_S[0], crowded, rows)


def _nearest(values: Floats, given: Floats) -> NDArray[np.intp]:
    return np.searchsorted((values[1:] + values[:-1]) / 2, given)


def _quantiles(samples: Floats) -> Floats:
    return np.quantile(samples, _PARTS)


def fit(machine: Machine, seconds: float) -> Fit:
    """The tables, from runs of so many simulated seconds each."""
    capacity = capacity_of(machine, seconds)

    def seen(
        load: float, n_jobs: int = 0, *, part: float = QUERY_PART, warm_up: float = 0.2
    ) -> Seen:
        replica = Replica(machine, load * capacity, n_jobs, query_part=part)
        return replica.run(seconds, capacity, warm_up=warm_up)

    calm = [seen(load) for load in LOADS]
    beside = [seen(load, 8, part=1.0) for load in QUERY_LOADS]
    loads = ((1.03, 1.0), (1.1, 1.0), (1.3, 1.0), (1.9, QUERY_PART))
    crowd = [seen(load, part=part, warm_up=0.0) for load, part in loads]
    ahead = np.concatenate([one.ahead_s for one in crowd])
    spent = np.concatenate([one.query_s for one in crowd])
    bins = np.searchsorted(AHEAD_S[1:-1], ahead)
    rows = [_quantiles(one.query_s) for one in (*calm, *beside)]
    rows += [
        _quantiles(spent[(bins == number) & (ahead > AHEAD_S[0])])
        for number in range(len(AHEAD_S) - 1)
    ]
    return Fit(
        capacity,
        0.2 / CORES,
        np.array([one.busy for one in calm]),
        np.array([one.backlog_s for one in calm]),
        np.array(rows),
    )
