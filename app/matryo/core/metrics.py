"""The metrics of one application: what a scrape reads, and how requests are counted.

Counters and histograms change when something happens. Gauges are set by `Metrics.refresh`, which
runs before each scrape of this process and a few times a second for the scrapes of others.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from matryo.core.errors import Abandoned, CapacityError, DeadlinePassed
from matryo.core.metric_list import (
    ABORT_REASONS,
    BATCH_OUTCOMES,
    DIRECTIONS,
    DROP_REASONS,
    HEARTBEATS,
    HOLDERS,
    LANES,
    OUTCOMES,
    REJECTION_REASONS,
    RELOADS,
    START_STEPS,
    MetricList,
)
from matryo.core.shared import shared_folder
from matryo.core.steps import Steps
from matryo.core.usage import Usage, processes_of

_SERIES = 512  # of one metric, that are found quickly


class RequestLabels(NamedTuple):
    """What is known of a request that ended; an empty text for what is not.

    Attributes:
        door: one of `DOORS`.
        route: name of the route, or full name of the method.
        model: id of a served model.
        input_type: of the model.
        status: of HTTP, or the name of gRPC's code.
    """

    door: str
    route: str
    model: str
    input_type: str
    status: str


class Metrics(MetricList):
    """The metrics of one application.

    Args:
        registry: the registry of the metrics. Every application and every test has its own.

    Attributes:
        n_in_progress: requests and calls that are not answered yet, of every door.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(Usage(processes_of(None)))
        self._refreshers: list[Callable[[], None]] = []
        self._of_requests: dict[RequestLabels, tuple[Counter, Histogram]] = {}
        self._cpu_s = 0.0
        self.n_in_progress = 0
        # A request counts in a dozen series; looking each of them up by its labels costs 2 % of it.
        for member in vars(self).values():
            if isinstance(member, (Counter, Gauge, Histogram)):
                metric: Any = member
                metric.labels = functools.lru_cache(_SERIES)(metric.labels)

    # --- for scrapes

    def on_refresh(self, refresher: Callable[[], None]) -> None:
        """Have `refresher` set its gauges whenever gauges are refreshed; for the event loop."""
        self._refreshers.append(refresher)

    def refresh(self) -> None:
        """Set every gauge to what is true now; for the event loop."""
        self.requests_in_progress.set(self.n_in_progress)
        cpu_s = time.process_time()
        self.cpu_seconds.inc(max(0.0, cpu_s - self._cpu_s))
        self._cpu_s = cpu_s
        for refresher in self._refreshers:
            refresher()

    def exported(self) -> Collector:
        """What a scrape reads, of this process or of all server processes together."""
        folder = shared_folder()
        if not folder:
            return _Exported(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))  # pyright: ignore[reportUnknownParameterType]
        registry.register(Usage(processes_of(folder)))
        return _Exported(registry)

    def start_at_zero(self, models: Iterable[str]) -> None:
        """Create the series of rare events with the value 0.

        An alert on the rate of a counter cannot see the first event of a series that begins with
        that event.

        Args:
            models: ids of the served models.
        """
        ids = tuple(models)
        series: list[tuple[Counter | Gauge, Iterable[tuple[str, ...]]]] = [
            (self.rejections, product(REJECTION_REASONS)),
            (self.aborts, product(ABORT_REASONS)),
            (self.dropped_connections, product(DROP_REASONS)),
            (self.http_refusals, product(("503",))),  # the other statuses are callers' faults
            (self.reloads, product(RELOADS, OUTCOMES)),
            (self.memory_held, product(HOLDERS)),
            (self.bytes_in_flight, product(DIRECTIONS)),
            (self.start_seconds, product(START_STEPS)),
            (self.waiting_requests, product(ids, LANES)),
            (self.waiting_texts, product(ids, LANES)),
            (self.batch_lines, product(BATCH_OUTCOMES)),
            (self.heartbeats, product(ids, HEARTBEATS)),
            (self.truncations, product(ids)),
            (self.unknown_texts, product(ids)),
            (self.cancellations, product(ids)),
            (self.failures, product(ids)),
            (self.padding_tokens, product(ids)),
            (self.busy_seconds, product(ids)),
        ]
        for metric, values in series:
            for labels in values:
                metric.labels(*labels)

    def show_start(self, steps: Steps) -> None:
        """Show what the start took, once the server is ready."""
        for step, seconds in steps.seconds.items():
            self.start_seconds.labels(step).set(seconds)

    # --- for the doors

    def count_request(
        self, labels: RequestLabels, seconds: float, trace_id: str | None = None
    ) -> None:
        """Count a request or a call that ended.

        Args:
            labels: see `RequestLabels`.
            seconds: from its start to its end.
            trace_id: of the trace that it belongs to, which becomes the exemplar of its bucket.
        """
        found = self._of_requests.get(labels)
        if found is None:
            counter = self.requests.labels(labels.door, labels.route, labels.model, labels.status)
            histogram = self.request_seconds.labels(
                labels.door, labels.model, labels.input_type, labels.status
            )
            found = self._of_requests[labels] = counter, histogram
        found[0].inc()
        found[1].observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def count_error(self, error: BaseException, key: str | None = None) -> None:
        """Count why a request ended with an error, as far as a server or its callers gave it up.

        Args:
            error: that the request ended with.
            key: name of the key; None on an open server.
        """
        if isinstance(error, DeadlinePassed):
            self.aborts.labels("deadline").inc()
        elif isinstance(error, Abandoned):
            self.aborts.labels("stopping").inc()
        elif isinstance(error, CapacityError) and error.reason:
            self.caller_rejections.labels(key or "", error.reason).inc()


class _Exported(Collector):
    """The metrics of a registry, without the moment at which each series began.

    prometheus_client writes that moment as a series of its own, which doubles those of counters.
    The library's switch is global: a library of ours must not change its user's own metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            name = f"{metric.name}_created"
            metric.samples = [sample for sample in metric.samples if sample.name != name]
            yield metric
