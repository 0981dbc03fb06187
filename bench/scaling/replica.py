"""One replica under an open stream of requests: the scheduler's own code on a clock that jumps."""

from __future__ import annotations

import functools
import heapq
import itertools
from asyncio import Task
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cores import Machine, SimulatedEngine
from matryo.core.errors import Overloaded
from matryo.engine import TokenIds, plan_cores
from tests.unit.scheduler.steps import Run, Stage

CORES = 4
MAX_WAIT_S = 10.0
RETRY_S = 5.0
_VOCABULARY = 30_000


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: lognormal lengths, cut at 4 and 512 tokens.

    Attributes:
        texts: of a request.
        median: tokens of a text.
        sigma: of the lognormal.
    """

    texts: int
    median: float
    sigma: float

    def lengths(self, generator: np.random.Generator, n_texts: int) -> NDArray[np.int64]:
        """Tokens of each of some texts."""
        spread = generator.lognormal(np.log(self.median), self.sigma, n_texts)
        return np.clip(spread, 4, 512).astype(np.int64)

    @functools.cached_property
    def moments(self) -> tuple[float, float]:
        """Mean tokens of a request, and its squared coefficient of variation."""
        lengths = self.lengths(np.random.default_rng(1), 100_000)
        mean = float(lengths.mean())
        return self.texts * mean, float(lengths.var()) / mean**2 / self.texts

    @property
    def tokens(self) -> float:
        """Mean tokens of a request."""
        return self.moments[0]


QUERY = Kind(1, 14, 0.5)
INGEST = Kind(4, 96, 0.6)  # documents that an application indexes as they come
JOB = Kind(16, 96, 0.6)  # documents of a job that has a fixed number of requests under way
QUERY_PART = 0.6  # of the tokens of queries and ingest


def published() -> Machine:
    """The costs of nomic-embed-text-v1.5 in int8 on one core, from docs/performance.md.

    The figures are tokens a second by texts and tokens of a run; interpreter, requests and the part
    of a run that threads share are those of `bench.cores` on the same page.
    """
    rates = {(1, 16): 433, (1, 128): 537, (4, 128): 538, (8, 64): 553, (1, 512): 458}
    costs = np.array([(1, n * size, n * size**2) for n, size in rates], np.float64)
    spent = np.array([n * size / rate for (n, size), rate in rates.items()])
    weights: NDArray[np.float64] = 1 / spent[:, None]
    fit = np.linalg.lstsq(costs * weights, np.ones(len(spent)), rcond=None)[0]
    run_s, token_s, score_s = (max(0.0, float(value)) for value in fit)
    return Machine(run_s, token_s, score_s, 0.85, 0.00175)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one replica did and its callers saw.

    Attributes:
        query_s: times of the queries that were answered.
        ahead_s: for each of them, the seconds of queries that were admitted and not answered when
            it came.
        refused: part of the queries that was refused.
        ingest_refused: part of the requests of ingest that was refused.
        tokens_per_s: computed tokens a second.
        busy: part of the cores' time with a run; about the CPU's utilisation.
        backlog_s: mean seconds of backlog: tokens that are admitted and not computed, over the
            capacity.
    """

    query_s: NDArray[np.float64]
    ahead_s: NDArray[np.float64]
    refused: float
    ingest_refused: float
    tokens_per_s: float
    busy: float
    backlog_s: float


class Replica:
    """A replica and its callers.

    Args:
        machine: what a run costs.
        tokens_per_s: of queries and ingest that arrive, a second.
        n_jobs: requests of jobs that are always under way.
        query_part: part of the arriving tokens that are of queries.
        seed: of the arrivals.
        cores: of the replica.
    """

    def __init__(
        self,
        machine: Machine,
        tokens_per_s: float,
        n_jobs: int = 0,
        *,
        query_part: float = QUERY_PART,
        seed: int = 0,
        cores: int = CORES,
    ) -> None:
        self._machine, self._use, self._cores = machine, plan_cores(cores), cores
        self._engine = SimulatedEngine(machine, self._use)
        self._stage = Stage([self._engine], workers=self._use.workers, max_wait_s=MAX_WAIT_S)
        self._rates = {
            QUERY: query_part * tokens_per_s / QUERY.tokens,
            INGEST: (1 - query_part) * tokens_per_s / INGEST.tokens,
        }
        self._n_jobs = n_jobs
        self._generator = np.random.default_rng(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._python_free = 0.0
        self._begun: set[int] = set()
        self._asked: dict[Task[Any], tuple[Kind, float, int, int]] = {}
        self._ahead = 0
        self._clear()

    def run(self, seconds: float, capacity: float, *, warm_up: float = 0.2) -> Seen:
        """What was seen in so many seconds.

        Args:
            seconds: to simulate.
            capacity: tokens a second of a busy replica.
            warm_up: seconds before, as a part of `seconds`.
        """
        loop = self._stage.loop
        started = loop.now
        warm = started + warm_up * seconds
        ends = warm + seconds
        for _ in range(self._n_jobs):
            self._at(started, lambda: self._ask(JOB))
        for kind in self._rates:
            self._come(kind)
        before = started
        while self._events and self._events[0][0] < ends:
            moment, _, act = heapq.heappop(self._events)
            loop.advance(max(0.0, moment - loop.now))
            if before < warm <= loop.now:
                self._clear()
                warm = loop.now
            self._backlog += self._stage.scheduler.queued_tokens * (loop.now - before)
            before = loop.now
            act()
            self._note_answers()
            self._note_runs()
        spent_s = loop.now - warm
        self._stage.close()
        answered = np.array(self._answered or np.empty((0, 2)), np.float64)
        return Seen(
            answered[:, 0],
            answered[:, 1] / capacity,
            self._refused_part(QUERY),
            self._refused_part(INGEST),
            self._n_tokens / spent_s,
            self._busy_s / spent_s / self._cores,
            self._backlog / capacity / spent_s,
        )

    def _clear(self) -> None:
        self._answered: list[tuple[float, int]] = []
        self._n_tokens = 0
        self._n_asked = dict.fromkeys((QUERY, INGEST, JOB), 0)
        self._n_refused = dict.fromkeys((QUERY, INGEST, JOB), 0)
        self._busy_s = self._backlog = 0.0

    def _refused_part(self, kind: Kind) -> float:
        return self._n_refused[kind] / max(1, self._n_asked[kind])

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), act))

    def _python(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something once the interpreter is free and has spent its time on it."""
        self._python_free = max(self._python_free, self._stage.loop.now) + seconds
        self._at(self._python_free, act)

    def _come(self, kind: Kind) -> None:
        """Let the next request of a kind come after a while, and so on."""
        if rate := self._rates[kind]:
            pause_s = float(self._generator.exponential(1 / rate))

            def arrive() -> None:
                self._ask(kind)
                self._come(kind)

            self._at(self._stage.loop.now + pause_s, arrive)

    def _ask(self, kind: Kind) -> None:
        asked = self._stage.loop.now
        self._python(self._machine.request_s, lambda: self._admit(kind, asked))

    def _admit(self, kind: Kind, asked: float) -> None:
        self._n_asked[kind] += 1
        lengths = kind.lengths(self._generator, kind.texts)
        texts: list[TokenIds] = [self._generator.integers(0, _VOCABULARY, int(n)) for n in lengths]
        priority = "online" if kind is QUERY else "bulk"
        work = self._stage.scheduler.run(self._engine, texts, 768, priority=priority)
        n_tokens = int(lengths.sum()) if kind is QUERY else 0
        self._asked[self._stage.task(work)] = kind, asked, n_tokens, self._ahead
        self._ahead += n_tokens

    def _note_answers(self) -> None:
        now = self._stage.loop.now
        for task in [task for task in self._asked if task.done()]:
            kind, asked, n_tokens, ahead = self._asked.pop(task)
            self._ahead -= n_tokens
            refused = isinstance(task.exception(), Overloaded)
            if kind is JOB:
                self._at(now + (RETRY_S if refused else 0.0), lambda: self._ask(JOB))
                continue
            self._n_refused[kind] += refused
            if kind is QUERY and not refused:
                self._answered.append((now - asked, ahead))

    def _note_runs(self) -> None:
        runs = self._stage.executor.runs
        for run in runs:
            if id(run) not in self._begun:
                self._begun.add(id(run))
                threads = self._use.lone_threads if len(runs) == 1 else self._use.threads
                spent_s = self._machine.seconds(run.lengths, threads)
                self._busy_s += spent_s * self._core_use(threads)
                ended = self._stage.loop.now + spent_s
                self._at(ended, lambda r=run, s=spent_s: self._compute_ended(r, s))

    def _core_use(self, threads: int) -> float:
        """Cores that a run keeps busy, on average over its time."""
        shared = self._machine.shared
        return 1 / (1 - shared + shared / threads)

    def _compute_ended(self, run: Run, spent_s: float) -> None:
        self._busy_s += self._machine.interpreter_s
        self._python(self._machine.interpreter_s, lambda: self._run_ended(run, spent_s))

    def _run_ended(self, run: Run, spent_s: float) -> None:
        self._begun.discard(id(run))
        self._engine.spent_s = spent_s
        self._n_tokens += sum(job.n_tokens for job in run.batch)
        self._stage.finish(self._stage.executor.runs.index(run))


def capacity_of(machine: Machine, seconds: float = 60) -> float:
    """Tokens a second of a replica that gets half as much again as it can compute."""
    guess = CORES / machine.token_s
    return Replica(machine, 1.5 * guess).run(seconds, guess).tokens_per_s
