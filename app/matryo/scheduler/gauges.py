"""What a scrape sees of the scheduler: what waits, for how long, and who works."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matryo.core.metric_list import LANES
from matryo.core.metrics import Metrics
from matryo.engine import Engine
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.groups import Group, first_live
from matryo.scheduler.queue import Queue
from matryo.scheduler.rates import Rates


class Gauges:
    """The gauges of one scheduler, which no request pays for.

    Args:
        engines: every model.
        queue: of the admitted requests.
        rates: of the models.
        config: of the scheduler.
        metrics: has the gauges.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        queue: Queue,
        rates: Rates,
        config: SchedulerConfig,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._rates = queue, rates
        self._config, self._metrics, self._clock = config, metrics, clock
        self._engines = engines

    def show(self) -> None:
        """Set every gauge to what is true now. Probes of idle models count nowhere."""
        metrics, queue = self._metrics, self._queue
        runs = [run for run in queue.runs if not run.is_probe]
        for run in runs:
            queue.count_busy(run)
        metrics.workers.set(self._config.workers)
        metrics.busy_workers.set(len(runs))
        online = [run for run in runs if not run.is_background]
        n_waiting = queue.waiting.n_tokens - queue.waiting.n_probe_tokens
        metrics.queue_tokens.set(n_waiting + sum(run.n_tokens for run in online))
        for engine in self._engines:
            left_s = sum(queue.admission.left_s(run) for run in online if run.engine is engine)
            self._show_model(engine, left_s)

    def _show_model(self, engine: Engine, left_s: float) -> None:
        """Set the gauges of one model, whose runs still take `left_s` of one worker."""
        metrics, model = self._metrics, engine.manifest.id
        waiting = self._queue.waiting
        for name, loads in zip(LANES, (waiting.queries, waiting.bulk), strict=True):
            own = [load for load in loads if load.engine is engine and load.n_called]
            left_s += sum(map(self._queue.admission.load_s, own))
            metrics.waiting_requests.labels(model, name).set(sum(load.n_called for load in own))
            metrics.waiting_texts.labels(model, name).set(sum(load.n_texts for load in own))
        oldest_s = max(
            (
                self._oldest_s(group)
                for account in waiting.accounts.waiting()
                for group in (*account.queries, *account.bulk)
                if group.engine is engine and group.n_called
            ),
            default=0.0,
        )
        workers = self._config.workers
        metrics.backlog_seconds.labels(model).set(left_s / workers)
        metrics.oldest_wait_seconds.labels(model).set(oldest_s)
        metrics.speed.labels(model).set(workers * self._rates.of(engine).tokens_per_s)

    def _oldest_s(self, group: Group) -> float:
        """Seconds for which nothing was computed of the request of a group that waits longest."""
        index = first_live(group.by_age)
        if index == len(group.by_age):
            return 0.0
        since, _number, _ticket = group.by_age[index]
        return max(0.0, self._clock() - since)
