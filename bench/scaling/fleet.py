"""A model of many replicas under an autoscaler.

Each replica has two queues, of queries and of bulk, in seconds of its own work, and steps of a
quarter of a second. Requests go to a random ready replica. Admission is the scheduler's rule: a
request is refused if the wait that the scheduler would expect is over the limit. Queries go first;
bulk gets one batch a second of one worker beside them. How long a query takes is read off the runs
of the scheduler's own code (`fit`), by the state that the query meets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.scaling.autoscaler import SYNC_S, Autoscaler, from_average, from_utilization
from bench.scaling.fit import LOADS, MAX_WAIT_S, Fit, Floats
from bench.scaling.replica import INGEST, JOB, QUERY, QUERY_PART, RETRY_S
from bench.scaling.traffic import Day

STEP_S = 0.25
SCRAPE_S = 15.0
START_S = (25.0, 60.0)
"""Least and most seconds from the decision until a new pod is ready: schedule, image, model."""
DRAIN_S = 10.0
_SMOOTH = STEP_S / 5.0


@dataclass(frozen=True, slots=True)
class Targets:
    """What an autoscaler aims at; None for a metric that it does not use."""

    backlog_s: float | None = None
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A day.

    Attributes:
        refused: part of the queries that was refused.
        ingest_refused: part of the requests of ingest that was refused.
        late: part of the queries that was refused or took more than a second.
        p50_s: median time of the answered queries.
        p99_s: of the answered queries.
        replica_hours: that pods were there, ready or not.
        busy: mean utilisation of the ready pods.
        turns: how often the number of pods turned from growing to shrinking or back.
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
    turns: int
    most: int
    jobs_s: float
    pods: Floats


class _Pods:
    """The pods, an element of each array for each pod that there may be."""

    def __init__(self, n: int) -> None:
        self.there = np.zeros(n, np.bool_)
        self.ready_at = np.full(n, np.inf)
        self.gone_at = np.full(n, np.inf)
        self.queries, self.bulk = np.zeros(n), np.zeros(n)
        self.load, self.query_load = np.zeros(n), np.zeros(n)
        self.busy_sum, self.busy, self.backlog = np.zeros(n), np.zeros(n), np.zeros(n)

    def begin(self, index: int, ready_at: float) -> None:
        self.there[index] = True
        self.ready_at[index], self.gone_at[index] = ready_at, np.inf
        for values in (self.queries, self.bulk, self.load, self.query_load):
            values[index] = 0.0
        for values in (self.busy_sum, self.busy, self.backlog):
            values[index] = 0.0


class Fleet:
    """Replicas and their traffic.

    Args:
        fit: what a replica does.
        day: what arrives.
        scaler: the autoscaler.
        targets: what it aims at.
        seed: of everything random.
        start: pods at the start.
    """

    def __init__(
        self, fit: Fit, day: Day, scaler: Autoscaler, targets: Targets, seed: int, start: int
    ) -> None:
        self._fit, self._day, self._scaler, self._targets = fit, day, scaler, targets
        self._random = np.random.default_rng(seed)
        self._pods = _Pods(2 * scaler.most + 4)
        for index in range(start):
            self._pods.begin(index, 0.0)
        self._wanted = start
        self._base = np.concatenate([[0.0], fit.backlog_s])
        self._busy = np.concatenate([[0.0], fit.busy, [1.0]])
        self._counts = np.zeros(len(fit.times))
        self._asked = self._refused = self._ingest_asked = self._ingest_refused = 0.0
        self._jobs = [[job.work, 0.0, 0.0] for job in day.jobs]  # left, under way, held back
        self._ended = [np.nan] * len(day.jobs)
        self._work_per_query = QUERY.tokens / fit.capacity
        self._cv2 = {kind: _cv2(kind) for kind in (QUERY, INGEST)}

    def run(self, watch: Callable[[float, int], None] | None = None) -> Outcome:
        """The day.

        Args:
            watch: is called with the time and the number of pods after each decision.
        """
        seconds = len(self._day.load)
        pod_s, busy_s, ready_s, turns, direction, most = 0.0, 0.0, 0.0, 0, 0, 0
        each_minute: list[float] = []
        for step in range(int(seconds / STEP_S)):
            now = step * STEP_S
            ready = np.flatnonzero(self._pods.there & (self._pods.ready_at <= now))
            taking = ready[self._pods.gone_at[ready] == np.inf]
            self._arrive(now, taking)
            busy = self._serve(now, ready)
            n_pods = int(np.count_nonzero(self._pods.there))
            pod_s += n_pods * STEP_S
            busy_s, ready_s = busy_s + busy * STEP_S, ready_s + len(ready) * STEP_S
            most = max(most, n_pods)
            if now % SCRAPE_S == 0:
                self._scrape(ready)
            if now % SYNC_S == SYNC_S / 2 and now:
                before = self._wanted
                self._decide(now)
                sign = int(np.sign(self._wanted - before))
                turns += sign * direction < 0
                direction = sign or direction
                if watch:
                    watch(now, self._wanted)
            if now % 60 == 0:
                each_minute.append(n_pods)
        quantiles = _mixture(self._fit.times, self._counts, (0.5, 0.99))
        answered = self._counts.sum()
        slow = self._counts @ np.mean(self._fit.times > 1.0, axis=1)
        ended = [
            (seconds if np.isnan(at) else at) - job.starts_s
            for at, job in zip(self._ended, self._day.jobs, strict=True)
        ]
        return Outcome(
            self._refused / self._asked,
            self._ingest_refused / max(1.0, self._ingest_asked),
            float((self._refused + slow) / (self._refused + answered)),
            quantiles[0],
            quantiles[1],
            pod_s / 3600,
            busy_s / max(1.0, ready_s),
            turns,
            most,
            float(np.mean(ended)) if ended else 0.0,
            np.array(each_minute),
        )

    # --- requests

    def _arrive(self, now: float, taking: Floats) -> None:
        """Admit or refuse what arrives in a step."""
        pods, n = self._pods, len(taking)
        load = self._day.load[int(now)]
        if not n:
            n_queries = QUERY_PART * load * STEP_S / self._work_per_query
            self._asked, self._refused = self._asked + n_queries, self._refused + n_queries
            return
        queries, n_queries = self._draw(QUERY, QUERY_PART * load / n, n)
        ingest, n_ingest = self._draw(INGEST, (1 - QUERY_PART) * load / n, n)
        ahead, behind = pods.queries[taking], pods.bulk[taking]
        # Queue.expected_s: bulk takes a batch for each second that queries would wait.
        wait = ahead + np.minimum(behind, (1 + ahead) * self._fit.start_s)
        taken = _admitted(queries, wait)
        pods.queries[taking] += taken * queries
        wait_bulk = ahead + behind
        taken_ingest = _admitted(ingest, wait_bulk)
        pods.bulk[taking] += taken_ingest * ingest
        self._asked += n_queries.sum()
        self._refused += float(n_queries @ (1 - taken))
        self._ingest_asked += n_ingest.sum()
        self._ingest_refused += float(n_ingest @ (1 - taken_ingest))
        self._submit(now, taking)
        pods.load[taking] += _SMOOTH * ((queries + ingest) / STEP_S - pods.load[taking])
        pods.query_load[taking] += _SMOOTH * (queries / STEP_S - pods.query_load[taking])
        rows = self._fit.rows(
            pods.load[taking], pods.query_load[taking], pods.queries[taking], pods.bulk[taking]
        )
        np.add.at(self._counts, rows, n_queries * taken)

    def _draw(self, kind: object, rate: float, n: int) -> tuple[Floats, Floats]:
        """Seconds of work, and number of requests, that arrive at each of n replicas."""
        tokens = QUERY.tokens if kind is QUERY else INGEST.tokens
        mean = tokens / self._fit.capacity
        counts = self._random.poisson(rate * STEP_S / mean, n).astype(np.float64)
        cv2 = self._cv2[QUERY if kind is QUERY else INGEST]
        work = mean * cv2 * self._random.standard_gamma(np.maximum(counts, 1e-9) / cv2)
        return np.where(counts > 0, work, 0.0), counts

    def _submit(self, now: float, taking: Floats) -> None:
        """Let each job fill up what it has under way."""
        pods, piece = self._pods, JOB.tokens / self._fit.capacity
        for number, (job, state) in enumerate(zip(self._day.jobs, self._jobs, strict=True)):
            left, under_way, held = state
            if now < job.starts_s or (left <= 0 and under_way <= 1e-9):
                continue
            room = min(job.under_way - under_way - held, left)
            state[2] = held * max(0.0, 1 - STEP_S / RETRY_S)
            n = int(room / piece)
            if n <= 0 and left > piece:
                continue
            sent = np.bincount(self._random.integers(0, len(taking), max(1, n)), minlength=len(taking))
            work = np.minimum(sent * piece, left)
            taken = work * _admitted(work, pods.queries[taking] + pods.bulk[taking])
            pods.bulk[taking] += taken
            state[0], state[1] = left - taken.sum(), under_way + taken.sum()
            state[2] += float(work.sum() - taken.sum())
            if state[0] <= piece and np.isnan(self._ended[number]):
                self._ended[number] = now

    def _serve(self, now: float, ready: Floats) -> float:
        """Compute for a step; the busy part of the replicas, summed."""
        pods = self._pods
        queries, bulk = pods.queries[ready], pods.bulk[ready]
        share = np.where(bulk > 0, self._fit.start_s, 0.0) * STEP_S
        done_queries = np.minimum(queries, STEP_S - np.minimum(share, bulk))
        done_bulk = np.minimum(bulk, STEP_S - done_queries)
        total = float(bulk.sum())
        pods.queries[ready] -= done_queries
        pods.bulk[ready] -= done_bulk
        if total > 0:  # jobs and ingest share what is computed of bulk
            part = float(done_bulk.sum()) / total
            for state in self._jobs:
                state[1] = max(0.0, state[1] * (1 - part))
        used = (done_queries + done_bulk) / STEP_S
        busy = np.interp(used, (0.0, *LOADS, 1.0), self._busy)
        pods.busy_sum[ready] += busy * STEP_S
        gone = ready[(pods.gone_at[ready] <= now) & (pods.queries[ready] + pods.bulk[ready] <= 0)]
        pods.there[gone] = False
        return float(busy.sum())

    # --- scaling

    def _scrape(self, ready: Floats) -> None:
        """What Prometheus and the metrics server see from now on."""
        pods = self._pods
        # What runs counts as backlog too; the queues of the model hold only what waits.
        runs = np.interp(pods.load[ready], (0.0, *LOADS), self._base)
        pods.backlog[ready] = pods.queries[ready] + np.maximum(pods.bulk[ready], runs)
        pods.busy[ready] = pods.busy_sum[ready] / SCRAPE_S
        pods.busy_sum[:] = 0.0

    def _decide(self, now: float) -> None:
        pods, targets = self._pods, self._targets
        mine = np.flatnonzero(pods.there & (pods.gone_at == np.inf))
        ready = mine[pods.ready_at[mine] <= now]
        proposals: list[int] = []
        if targets.backlog_s is not None:
            total = float(pods.backlog[ready].sum())
            proposals.append(from_average(total, targets.backlog_s, self._wanted))
        if targets.cpu is not None:
            n_starting = len(mine) - len(ready)
            busy = pods.busy[ready].tolist()
            proposals.append(from_utilization(busy, n_starting, targets.cpu, self._wanted))
        self._wanted = self._scaler.decide(now, self._wanted, max(proposals))
        for _ in range(self._wanted - len(mine)):
            free = int(np.flatnonzero(~pods.there)[0])
            pods.begin(free, now + float(self._random.uniform(*START_S)))
        if (surplus := len(mine) - self._wanted) > 0:
            # Pods that are not ready go first.
            order = np.lexsort((self._random.random(len(mine)), pods.ready_at[mine] <= now))
            pods.gone_at[mine[order[:surplus]]] = now + DRAIN_S


def _admitted(work: Floats, wait: Floats) -> Floats:
    """The part of what arrives that keeps the wait under the limit."""
    room = np.maximum(0.0, MAX_WAIT_S - wait)
    return np.minimum(1.0, room / np.maximum(work, 1e-12))


def _cv2(kind: object) -> float:
    """Squared coefficient of variation of the tokens of a request."""
    one = QUERY if kind is QUERY else INGEST
    lengths = one.lengths(np.random.default_rng(1), 100_000)
    return float(lengths.var() / lengths.mean() ** 2 / one.texts)


def _mixture(times: Floats, counts: Floats, parts: tuple[float, ...]) -> list[float]:
    """Quantiles of a mixture of rows, each with a weight."""
    values = times.ravel()
    weights = np.repeat(counts / times.shape[1], times.shape[1])
    order = np.argsort(values)
    grown = np.cumsum(weights[order])
    return [float(values[order][np.searchsorted(grown, part * grown[-1])]) for part in parts]
