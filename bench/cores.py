"""Workers, threads and processes on more cores than this machine has, simulated.

    .venv/bin/python -m bench.cores --model nomic-embed-text-v1.5 --precision int8

The scheduler's own code runs on a clock that jumps from event to event. What a run takes is
measured first, on this machine: seconds of one thread by the number and length of the texts, the
part of a run that two threads share, and the interpreter's time for a run. Runs on cores of their
own are taken not to slow each other down, and `--remote` says how many times as long a run takes
whose threads and memory are on two NUMA nodes; neither can be measured on a machine of few cores.

Two requests of bulk for each worker always wait, and one query client asks again 5 ms after each
answer. A row's share is the bulk's rate over that of one thread on each core.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import time
from asyncio import Task
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matryo.assembly.models import make_ready
from matryo.catalog.catalog import open_catalog
from matryo.core.environment import load_settings
from matryo.engine import BatchResult, CoreUse, Interrupt, TokenIds, plan_cores
from matryo.engine.factory import load_engine
from matryo.engine.onnx.limits import cpu_limits
from matryo.engine.postprocess import FloatArray
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.fakes import FakeEngine
from tests.unit.scheduler.steps import Run, Stage

_SHAPES = ((1, 16), (1, 64), (1, 128), (4, 128), (8, 64), (1, 512))
_QUERY_TOKENS, _QUERY_PAUSE_S = 16, 0.005
_BULK_TEXTS = 16
_REQUEST_S = 0.001  # an event loop answers about a thousand short requests a second
_HAND_OVERS = 20


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run costs.

    Attributes:
        run_s: of any run.
        token_s: of a token's products, on one thread.
        score_s: of one attention score, on one thread.
        shared: part of a run that its threads share; the rest runs on one of them.
        interpreter_s: of Python for a run, while no other Python runs.
        request_s: of Python for a request.
        remote: how many times as long a run takes on two NUMA nodes.
    """

    run_s: float
    token_s: float
    score_s: float
    shared: float
    interpreter_s: float
    request_s: float = _REQUEST_S
    remote: float = 1.0

    def seconds(self, lengths: Sequence[int], threads: int) -> float:
        """Of a run of texts with these lengths."""
        alone = self.run_s + self.token_s * sum(lengths)
        alone += self.score_s * len(lengths) * max(lengths) ** 2
        return self.remote * alone * (1 - self.shared + self.shared / threads)


# --- measuring


def _least(
    run: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Least seconds of a call.

    Args:
        run: is called for about `seconds`.
        seconds: of the measurement.
        clock: CPU time of this thread, which others on the machine hardly change; a wall clock for
            a call with threads of its own.
    """
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = clock()
        run()
        best = min(best, clock() - started)
    return best


def measure(model: str, precision: str, seconds: float) -> Machine:
    """The costs of a model's runs on this machine.

    Args:
        model: id of the model.
        precision: of the artefact, which is built if missing.
        seconds: of each measurement.
    """
    settings = make_ready(load_settings(None, model=(model,), precision=precision))
    manifest = open_catalog(settings).manifest(settings.model[0])
    offered = manifest.precision_for(settings.precision)
    artifact = find_artifact(Store(settings.home), manifest, offered)
    generator, native = np.random.default_rng(0), manifest.output.dimensions.native
    vocabulary = int(manifest.architecture.config["vocab_size"])
    engines = [load_engine(manifest, artifact, CoreUse(1, n, n)) for n in (1, 2)]

    def batch(n_texts: int, n_tokens: int) -> list[TokenIds]:
        return list(generator.integers(0, vocabulary, (n_texts, n_tokens)))

    shapes = [shape for shape in _SHAPES if shape[1] <= manifest.tokenizer.max_tokens]
    spent: list[float] = []
    for shape in shapes:
        texts = batch(*shape)
        sizes = [native] * len(texts)
        spent.append(_least(lambda t=texts, s=sizes: engines[0].embed(t, s), seconds))
    # Each row is divided by its time: a relative error counts alike in short and long runs.
    costs = np.array([(1, n * length, n * length**2) for n, length in shapes], np.float64)
    weights: NDArray[np.float64] = 1 / np.array(spent)[:, None]
    fit = np.linalg.lstsq(costs * weights, np.ones(len(shapes)), rcond=None)[0]
    run_s, token_s, score_s = (max(0.0, float(value)) for value in fit)
    texts = batch(1, min(512, manifest.tokenizer.max_tokens))
    both = [
        _least(lambda e=engine: e.embed(texts, [native]), 4 * seconds, time.perf_counter)
        for engine in engines
    ]
    shared = min(1.0, max(0.0, 2 * (1 - both[1] / both[0])))
    results = [engines[0].embed(batch(8, 64), [native] * 8) for _ in range(_HAND_OVERS)]
    for engine in engines:
        engine.close()
    python_s = min(result.postprocess_s for result in results)
    python_s += min(_hand_over_s() for _ in range(_HAND_OVERS))
    return Machine(run_s, token_s, score_s, shared, python_s)


def _hand_over_s() -> float:
    """Seconds of the scheduler's own Python for a run: choose, hand over, deliver."""
    engine = SimulatedEngine(Machine(0.0, 1e-6, 0.0, 1.0, 0.0), plan_cores(1))
    with Stage([engine], workers=1) as stage:
        texts = [np.arange(20 * n, 20 * n + 16) for n in range(64)]
        started = time.thread_time()
        tasks = [stage.task(stage.scheduler.run(engine, [ids], 768)) for ids in texts]
        n_runs = len(stage.finish_all())
        spent_s = time.thread_time() - started
        assert all(task.done() for task in tasks)
    return spent_s / n_runs


# --- simulating


class SimulatedEngine(FakeEngine):
    """Gives zeros, and reports the time that a run takes on a machine.

    Args:
        machine: what a run costs.
        use: of the cores.

    Attributes:
        spent_s: what the run that ends now took; None for that of a lone run.
    """

    def __init__(self, machine: Machine, use: CoreUse) -> None:
        super().__init__()
        self.limits = cpu_limits(use)
        self._machine, self._use = machine, use
        self.spent_s: float | None = None

    def embed(
        self,
        texts: Sequence[TokenIds],
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,
        interrupt: Interrupt | None = None,
    ) -> BatchResult:
        """Zeros."""
        del normalize, interrupt
        spent_s = self.spent_s
        if spent_s is None:
            spent_s = self._machine.seconds(list(map(len, texts)), self._use.lone_threads)
        rows: list[FloatArray] = [np.zeros(size, np.float32) for size in dimensions]
        return BatchResult(rows, 0, spent_s, 0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the clients of one server saw.

    Attributes:
        bulk_tokens_per_s: tokens of bulk that runs computed, a second.
        query_s: times of all queries.
    """

    bulk_tokens_per_s: float
    query_s: Sequence[float]

    def quantile_ms(self, part: float) -> float:
        """A quantile of the queries' times, in ms."""
        return 1000 * float(np.quantile(self.query_s, part)) if self.query_s else float("nan")


class _Simulation:
    """One server and its clients on a clock that jumps.

    Args:
        machine: what a run costs.
        use: of the cores.
        n_bulk: clients of bulk, each with one request at a time.
        n_queries: clients of queries.
    """

    def __init__(self, machine: Machine, use: CoreUse, n_bulk: int, n_queries: int) -> None:
        self._machine, self._use = machine, use
        self._engine = SimulatedEngine(machine, use)
        self._stage = Stage([self._engine], workers=use.workers)
        self._generator = np.random.default_rng(0)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._python_free = 0.0
        self._begun: set[int] = set()
        self._asked: dict[Task[Any], tuple[float, bool]] = {}
        self._clients = [False] * n_bulk + [True] * n_queries
        self.n_tokens, self.query_s = 0, list[float]()

    def run(self, seconds: float) -> Outcome:
        """What the clients saw in so many seconds, after a tenth of them as a warm-up."""
        loop = self._stage.loop
        started = loop.now
        for is_query in self._clients:
            self._at(started, lambda q=is_query: self._ask(is_query=q))
        warm, measured_from = started + seconds / 10, started + seconds / 10
        while self._events and self._events[0][0] < started + 1.1 * seconds:
            moment, _, act = heapq.heappop(self._events)
            loop.advance(max(0.0, moment - loop.now))
            if loop.now >= warm:
                warm, self.n_tokens, measured_from = float("inf"), 0, loop.now
                self.query_s.clear()
            act()
            self._note_answers()
            self._note_runs()
        spent_s = loop.now - measured_from
        self._stage.close()
        return Outcome(self.n_tokens / spent_s, self.query_s)

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), act))

    def _python(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something once the interpreter is free and has spent its time on it."""
        self._python_free = max(self._python_free, self._stage.loop.now) + seconds
        self._at(self._python_free, act)

    def _ask(self, *, is_query: bool) -> None:
        asked = self._stage.loop.now
        self._python(self._machine.request_s, lambda: self._admit(asked, is_query=is_query))

    def _admit(self, asked: float, *, is_query: bool) -> None:
        if is_query:
            lengths = np.array([_QUERY_TOKENS])
        else:
            spread = self._generator.lognormal(np.log(80), 0.7, _BULK_TEXTS)
            lengths = np.clip(spread, 8, 512).astype(int)
        texts: list[TokenIds] = [self._generator.integers(0, 30000, int(n)) for n in lengths]
        priority = "online" if is_query else "bulk"
        work = self._stage.scheduler.run(self._engine, texts, 768, priority=priority)
        task = self._stage.task(work)
        self._asked[task] = asked, is_query

    def _note_answers(self) -> None:
        now = self._stage.loop.now
        for task in [task for task in self._asked if task.done()]:
            asked, is_query = self._asked.pop(task)
            if is_query:
                self.query_s.append(now - asked)
            pause_s = _QUERY_PAUSE_S if is_query else 0.0
            self._at(now + pause_s, lambda q=is_query: self._ask(is_query=q))

    def _note_runs(self) -> None:
        runs = self._stage.executor.runs
        for run in runs:
            if id(run) not in self._begun:
                self._begun.add(id(run))
                threads = self._use.lone_threads if len(runs) == 1 else self._use.threads
                spent_s = self._machine.seconds(run.lengths, threads)
                ended = self._stage.loop.now + spent_s
                self._at(ended, lambda r=run, s=spent_s: self._compute_ended(r, s))

    def _compute_ended(self, run: Run, spent_s: float) -> None:
        self._python(self._machine.interpreter_s, lambda: self._run_ended(run, spent_s))

    def _run_ended(self, run: Run, spent_s: float) -> None:
        self._begun.discard(id(run))
        self._engine.spent_s = spent_s
        self.n_tokens += sum(job.n_tokens for job in run.batch if job.ticket.bulk)
        self._stage.finish(self._stage.executor.runs.index(run))


def simulate(
    machine: Machine, use: CoreUse, seconds: float, *, bulk: bool = True, queries: int = 1
) -> Outcome:
    """What the clients of one server see.

    Args:
        machine: what a run costs.
        use: of the server's cores.
        seconds: to simulate.
        bulk: whether there is bulk.
        queries: clients of queries.
    """
    # A batch takes about one request of bulk: two for each worker keep every worker busy.
    return _Simulation(machine, use, 2 * use.workers if bulk else 0, queries).run(seconds)


# --- the table


def plans(cores: int) -> list[tuple[int, CoreUse]]:
    """Processes, and how each of them uses its cores: the plan first, then others."""
    found = [(1, plan_cores(cores))]
    found += [(1, plan_cores(cores, workers)) for workers in (4, 8, 16, 32, 64) if workers <= cores]
    found += [(n, plan_cores(cores // n)) for n in (2, 4, 8) if n < cores]
    return list(dict.fromkeys(found))


def table(machine: Machine, cores: Sequence[int], seconds: float) -> str:
    """The simulations as Markdown.

    Args:
        machine: what a run costs. A single process on 16 cores or more has two NUMA nodes.
        cores: of the machines.
        seconds: to simulate.
    """
    heads = ["cores", "processes", "workers x threads", "bulk, share", "query alone, ms"]
    heads += ["query beside bulk p50 / p99, ms", "queries a second at most"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    local = replace(machine, remote=1.0)
    bulk_token_s = local.seconds([80] * 12, 1) / (80 * 12)
    for n_cores in cores:
        for n_processes, use in plans(n_cores):
            one = machine if n_processes == 1 and n_cores >= _TWO_NODES else local
            mixed = simulate(one, use, seconds)
            share = n_processes * mixed.bulk_tokens_per_s * bulk_token_s / n_cores
            alone = simulate(one, use, seconds, bulk=False).quantile_ms(0.5)
            crowd = simulate(one, use, seconds / 4, bulk=False, queries=4 * use.workers)
            rate = n_processes * len(crowd.query_s) / (seconds / 4)
            lines.append(
                f"| {n_cores} | {n_processes} | {use.workers} x {use.threads} | {share:.2f} "
                f"| {alone:.1f} | {mixed.quantile_ms(0.5):.0f} / {mixed.quantile_ms(0.99):.0f} "
                f"| {rate:,.0f} |"
            )
    return "\n".join(lines)


_TWO_NODES = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, simulate, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--cores", type=int, action="append", help="of a machine; 4, 16 and 64")
    parser.add_argument("--seconds", type=float, default=4.0, help="to simulate")
    parser.add_argument("--measure", type=float, default=0.5, help="seconds of a measurement")
    parser.add_argument("--remote", type=float, default=1.0, help="cost of two NUMA nodes")
    parser.add_argument(
        "--shared",
        type=float,
        help="part of a run that its threads share; not to be measured on a busy machine",
    )
    given = parser.parse_args(arguments)
    machine = measure(given.model, given.precision, given.measure)
    shared = machine.shared if given.shared is None else given.shared
    machine = replace(machine, remote=given.remote, shared=shared)
    print(
        f"{given.model} {given.precision}: a run {1000 * machine.run_s:.2f} ms, a token "
        f"{1e6 * machine.token_s:.0f} us, a score {1e9 * machine.score_s:.1f} ns; threads share "
        f"{machine.shared:.0%} of a run; Python {1000 * machine.interpreter_s:.2f} ms a run and "
        f"{1000 * machine.request_s:.1f} ms a request; two nodes x {machine.remote:g}\n"
    )
    print(table(machine, given.cores or (4, 16, 64), given.seconds))


if __name__ == "__main__":
    main()
