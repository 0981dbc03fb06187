"""A model of many replicas, side by side under several autoscalers.

Each replica has two queues, of queries and of bulk, in seconds of its own work, and time goes in
steps of a second. Requests go to a random ready replica. Admission is the scheduler's rule: a
request is refused if the wait that the scheduler would expect is over the limit. Queries go first;
bulk gets one batch a second of one worker beside them. How long a query takes is read off the runs
of the scheduler's own code (`fit`), by the state that the query meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.scaling.autoscaler import (
    SYNC_S,
    Autoscaler,
    Behavior,
    from_average,
    from_utilization,
)
from bench.scaling.fit import LOADS, Fit, Floats
from bench.scaling.replica import INGEST, JOB, MAX_WAIT_S, QUERY, QUERY_PART, RETRY_S, Kind
from bench.scaling.traffic import Day

STEP_S = 1.0
SCRAPE_S = 15.0
START_S = (25.0, 60.0)
"""Least and most seconds from the decision until a new pod is ready: schedule, image, model."""
DRAIN_S = 10.0
LATE_S = 1.0
_SMOOTH = STEP_S / 5.0

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Plan:
    """An autoscaler and what it aims at.

    Attributes:
        name: for the table.
        backlog_s: seconds of backlog of each pod; None if it does not look at the backlog.
        cpu: utilisation of each pod; None if it does not look at the CPU.
        behavior: how fast the number of pods may change.
    """

    name: str
    backlog_s: float | None
    cpu: float | None
    behavior: Behavior


@dataclass(frozen=True, slots=True)
class Outcome:
    """A day under one plan.

    Attributes:
        refused: part of the queries that was refused.
        ingest_refused: part of the requests of ingest that was refused.
        late: part of the queries that was refused or took longer than `LATE_S`.
        p50_s: median time of the answered queries.
        p99_s: of the answered queries.
        replica_hours: that pods were there, ready or not.
        busy: mean utilisation of the ready pods.
        backlog_s: mean backlog of a ready pod.
        turns: how often the number of pods turned from growing to shrinking, or back.
        most: most pods at once.
        jobs_s: mean seconds that the jobs took.
        pods: number of pods, each minute.
    """

    refused: float
    ingest_refused: float
    late: float
    p50_s: float
    p99_s: float
    replica_hours: float
    busy: float
    backlog_s: float
    turns: int
    most: int
    jobs_s: float
    pods: Floats


class Fleets:
    """Replicas and their traffic, a row for each plan and a column for each pod that there may be.

    Args:
        fit: what a replica does.
        day: what arrives.
        plans: the autoscalers.
        least: fewest pods.
        most: most pods.
        seed: of everything random.
    """

    def __init__(
        self, fit: Fit, day: Day, plans: Sequence[Plan], least: int, most: int, seed: int
    ) -> None:
        self._fit, self._day, self._plans = fit, day, plans
        self._random = np.random.default_rng(seed)
        self._scalers = [Autoscaler(least, most, plan.behavior) for plan in plans]
        n = len(plans)
        start = min(most, max(least, int(day.load[0] / 0.7) + 1))
        shape = (n, most + most // 2 + 4)  # pods that end are there beside those that begin
        self._there, self._ready_at = np.zeros(shape, np.bool_), np.full(shape, np.inf)
        self._gone_at = np.full(shape, np.inf)
        self._queries, self._bulk = np.zeros(shape), np.zeros(shape)
        self._load, self._query_load = np.zeros(shape), np.zeros(shape)
        self._busy_sum, self._busy_seen, self._backlog = (np.zeros(shape) for _ in range(3))
        self._there[:, :start], self._ready_at[:, :start] = True, 0.0
        self._wanted = [start] * n
        self._turns, self._direction = [0] * n, [0] * n
        self._counts = np.zeros((n, len(fit.times)))
        self._asked, self._refused = np.zeros((2, n)), np.zeros((2, n))  # queries, ingest
        jobs = (len(day.jobs), n)
        self._left = np.array([[job.work] * n for job in day.jobs]).reshape(jobs)
        self._under_way, self._held = np.zeros(jobs), np.zeros(jobs)
        self._ended = np.full(jobs, np.nan)

    def run(self) -> list[Outcome]:
        """The day, an outcome for each plan."""
        pod_s, busy_s, ready_s, backlog_s, most = np.zeros((5, len(self._plans)))
        minutes: list[Floats] = []
        for step in range(int(len(self._day.load) / STEP_S)):
            now = step * STEP_S
            ready: Bools = self._there & (self._ready_at <= now)
            taking: Bools = ready & np.isinf(self._gone_at)
            self._arrive(now, taking)
            busy_s += self._serve(now, ready)
            n_pods = self._there.sum(1)
            pod_s += n_pods
            ready_s += ready.sum(1)
            backlog_s += (self._queries + self._bulk).sum(1)
            most = np.maximum(most, n_pods)
            if now % SCRAPE_S == 0:
                self._scrape(ready)
            if now % SYNC_S == SYNC_S // 2 and now > SYNC_S:
                for row in range(len(self._plans)):
                    self._decide(row, now)
            if now % 60 == 0:
                minutes.append(n_pods.astype(np.float64))
        pods = np.array(minutes)
        return [
            self._outcome(
                row,
                replica_hours=float(pod_s[row]) * STEP_S / 3600,
                busy=float(busy_s[row] / ready_s[row]),
                backlog_s=float(backlog_s[row] / ready_s[row]),
                most=int(most[row]),
                pods=pods[:, row],
            )
            for row in range(len(self._plans))
        ]

    def _outcome(
        self,
        row: int,
        *,
        replica_hours: float,
        busy: float,
        backlog_s: float,
        most: int,
        pods: Floats,
    ) -> Outcome:
        counts, times = self._counts[row], self._fit.times
        p50_s, p99_s = mixture(times, counts, (0.5, 0.99))
        slow = float(counts @ np.mean(times > LATE_S, axis=1))
        refused = self._refused[:, row] / np.maximum(1.0, self._asked[:, row])
        seconds = len(self._day.load)
        ended = np.where(np.isnan(self._ended[:, row]), seconds, self._ended[:, row])
        spent = [
            float(at) - job.starts_s
            for at, job in zip(ended, self._day.jobs, strict=True)
            if job.starts_s < seconds
        ]
        return Outcome(
            refused=float(refused[0]),
            ingest_refused=float(refused[1]),
            late=float((self._refused[0, row] + slow) / max(1.0, self._asked[0, row])),
            p50_s=p50_s,
            p99_s=p99_s,
            replica_hours=replica_hours,
            busy=busy,
            backlog_s=backlog_s,
            turns=self._turns[row],
            most=most,
            jobs_s=float(np.mean(spent)) if spent else 0.0,
            pods=pods,
        )

    # --- requests

    def _arrive(self, now: float, taking: Bools) -> None:
        """Admit or refuse what arrives in a step."""
        load = float(self._day.load[int(now)])
        share: Floats = taking / np.maximum(1, taking.sum(1, keepdims=True))
        start_s, ahead, behind = self._fit.start_s, self._queries, self._bulk
        queries, n_queries = self._draw(QUERY, QUERY_PART * load * share)
        ingest, n_ingest = self._draw(INGEST, (1 - QUERY_PART) * load * share)
        # Queue.expected_s: bulk takes a batch for each second that queries would wait.
        wait = ahead + np.minimum(behind, (1 + ahead) * start_s)
        taken, taken_ingest = _admitted(queries, wait), _admitted(ingest, ahead + behind)
        self._asked += n_queries.sum(1), n_ingest.sum(1)
        lost = (n_queries * (1 - taken)).sum(1), (n_ingest * (1 - taken_ingest)).sum(1)
        self._refused += lost
        nobody = ~taking.any(1)
        if nobody.any():  # nobody is there to take anything
            self._asked[0, nobody] += 1
            self._refused[0, nobody] += 1
        self._load += _SMOOTH * ((queries + ingest) / STEP_S - self._load)
        self._query_load += _SMOOTH * (queries / STEP_S - self._query_load)
        rows = self._fit.rows(self._load, self._query_load, ahead, behind)
        self._queries = ahead + taken * queries
        self._bulk = behind + taken_ingest * ingest
        self._submit(now, taking)
        n = len(self._fit.times)
        at = rows + n * np.arange(len(rows))[:, None]
        weights = (n_queries * taken).ravel()
        found = np.bincount(at.ravel(), weights, minlength=self._counts.size)
        self._counts += found.reshape(self._counts.shape)

    def _draw(self, kind: Kind, rate: Floats) -> tuple[Floats, Floats]:
        """Seconds of work, and number of requests, that arrive at each replica."""
        tokens, cv2 = kind.moments
        mean = tokens / self._fit.capacity
        counts = self._random.poisson(rate * STEP_S / mean).astype(np.float64)
        # A sum of so many lengths, as a gamma of the same mean and variance.
        return mean * cv2 * self._random.standard_gamma(counts / cv2), counts

    def _submit(self, now: float, taking: Bools) -> None:
        """Let each job fill up what it has under way."""
        piece = JOB.tokens / self._fit.capacity
        self._held *= 1 - STEP_S / RETRY_S
        for number, job in enumerate(self._day.jobs):
            if now < job.starts_s:
                continue
            room = job.under_way - self._under_way[number] - self._held[number]
            pieces = np.minimum(room, self._left[number]) // piece
            for row in np.flatnonzero((pieces > 0) & taking.any(1)):
                pods = np.flatnonzero(taking[row])
                sent = self._random.integers(0, len(pods), int(pieces[row]))
                work: Floats = np.bincount(sent, minlength=len(pods)).astype(np.float64) * piece
                waits = self._queries[row, pods] + self._bulk[row, pods]
                admitted = work * _admitted(work, waits)
                self._bulk[row, pods] += admitted
                self._left[number, row] -= admitted.sum()
                self._under_way[number, row] += admitted.sum()
                self._held[number, row] += (work - admitted).sum()
            done = (self._left[number] < piece) & np.isnan(self._ended[number])
            self._ended[number, done] = now

    def _serve(self, now: float, ready: Bools) -> Floats:
        """Compute for a step; the busy part of the replicas, summed for each plan."""
        bulk_first = np.minimum(self._bulk, self._fit.start_s * STEP_S)
        done_queries = np.minimum(self._queries, STEP_S - bulk_first) * ready
        done_bulk = np.minimum(self._bulk, STEP_S - done_queries) * ready
        total = self._bulk.sum(1)
        # Jobs and ingest share what is computed of bulk.
        self._under_way *= 1 - done_bulk.sum(1) / np.maximum(total, 1e-12)
        self._queries -= done_queries
        self._bulk -= done_bulk
        busy = self._fit.busy_at((done_queries + done_bulk) / STEP_S) * ready
        self._busy_sum += busy * STEP_S
        gone: Bools = (self._gone_at <= now) & (self._queries + self._bulk <= 0)
        self._there &= ~gone
        return busy.sum(1)

    # --- scaling

    def _scrape(self, ready: Bools) -> None:
        """What Prometheus and the metrics server see from now on."""
        # What runs counts as backlog too; the queues of the model hold only what waits.
        runs = np.interp(self._load, LOADS, self._fit.backlog_s)
        runs *= np.minimum(1.0, self._load / LOADS[0])
        self._backlog = (self._queries + np.maximum(self._bulk, runs)) * ready
        self._busy_seen = self._busy_sum / SCRAPE_S
        self._busy_sum = np.zeros_like(self._busy_sum)

    def _decide(self, row: int, now: float) -> None:
        plan, current = self._plans[row], self._wanted[row]
        mine = np.flatnonzero(self._there[row] & np.isinf(self._gone_at[row]))
        is_ready: Bools = self._ready_at[row, mine] <= now
        ready = mine[is_ready]
        proposals: list[int] = []
        if plan.backlog_s is not None:
            total = float(self._backlog[row, ready].sum())
            proposals.append(from_average(total, plan.backlog_s, current))
        if plan.cpu is not None:
            busy = self._busy_seen[row, ready].tolist()
            n_starting = len(mine) - len(ready)
            proposals.append(from_utilization(busy, n_starting, plan.cpu, current))
        wanted = self._scalers[row].decide(now, current, max(proposals))
        self._wanted[row] = wanted
        sign = int(np.sign(wanted - current))
        self._turns[row] += sign * self._direction[row] < 0
        self._direction[row] = sign or self._direction[row]
        if wanted > len(mine):
            free = np.flatnonzero(~self._there[row])[: wanted - len(mine)]
            self._begin(row, free, now)
        elif wanted < len(mine):
            # Pods that are not ready go first.
            order = np.lexsort((self._random.random(len(mine)), is_ready))
            self._gone_at[row, mine[order[: len(mine) - wanted]]] = now + DRAIN_S

    def _begin(self, row: int, pods: NDArray[np.intp], now: float) -> None:
        for values in (self._queries, self._bulk, self._load, self._query_load):
            values[row, pods] = 0.0
        for values in (self._busy_sum, self._busy_seen, self._backlog):
            values[row, pods] = 0.0
        self._there[row, pods], self._gone_at[row, pods] = True, np.inf
        self._ready_at[row, pods] = now + self._random.uniform(*START_S, len(pods))


def _admitted(work: Floats, wait: Floats) -> Floats:
    """The part of what arrives that keeps the wait under the limit."""
    return np.minimum(1.0, np.maximum(0.0, MAX_WAIT_S - wait) / np.maximum(work, 1e-12))


def mixture(times: Floats, counts: Floats, parts: Sequence[float]) -> list[float]:
    """Quantiles of a mixture.

    Args:
        times: a row of samples for each distribution.
        counts: weight of each distribution.
        parts: which quantiles.
    """
    values = times.ravel()
    order = np.argsort(values)
    grown = np.cumsum(np.repeat(counts, times.shape[1])[order])
    return [float(values[order][np.searchsorted(grown, part * grown[-1])]) for part in parts]
