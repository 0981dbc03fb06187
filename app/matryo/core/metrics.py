"""Every metric of the service, on a registry that the caller gives.

Names follow Prometheus' rules: `matryo_` first, the unit last, and `_total` after counters. A label
has only values that the server knows, such as served models, input types and trained sizes. It
never has a text that a caller sent, because callers could then add series without end.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REJECTION_REASONS = ("queue_full", "requests", "wait", "memory", "draining")
DROP_REASONS = ("silent", "idle", "displaced", "slow_reader", "full", "tls")

_FAST_S = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_SLOW_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_SERIES = 512  # of one metric, that are found quickly
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The metrics of one application.

    Args:
        registry: the registry of the metrics. Every application and every test has its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self.requests = Counter(
            "matryo_requests",
            "HTTP requests answered. Status 499: the caller disconnected before the answer.",
            ("route", "status", "model"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "matryo_request_seconds",
            "Time from a request's headers to the end of its answer.",
            ("route",),
            buckets=_SLOW_S,
            registry=registry,
        )
        self.grpc_requests = Counter(
            "matryo_grpc_requests",
            "gRPC calls answered, by method and status code.",
            ("method", "code"),
            registry=registry,
        )
        self.grpc_request_seconds = Histogram(
            "matryo_grpc_request_seconds",
            "Time from the start of a gRPC call to its status. A stream is one call.",
            ("method",),
            buckets=_SLOW_S,
            registry=registry,
        )
        self.requests_in_progress = Gauge(
            "matryo_requests_in_progress",
            "HTTP requests not answered yet.",
            multiprocess_mode="livesum",
            registry=registry,
        )

        def stage(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"matryo_{name}_seconds",
                what,
                ("model",),
                buckets=buckets,
                registry=registry,
            )

        self.tokenize_seconds = stage(
            "tokenize", "Time to tokenise the texts of a request.", _FAST_S
        )
        self.queue_seconds = stage("queue", "Time from a text's admission to its run.", _SLOW_S)
        self.inference_seconds = stage(
            "inference", "Time of a run of the model on a batch.", _SLOW_S
        )
        self.postprocess_seconds = stage(
            "postprocess", "Time to pool and normalise a batch.", _FAST_S
        )
        self.encode_seconds = stage("encode", "Time to encode the answer of a request.", _FAST_S)

        shape = ("model", "input_type", "dimensions")
        self.texts = Counter(
            "matryo_texts",
            "Texts embedded. dimensions: a trained size, or 'other'.",
            shape,
            registry=registry,
        )
        self.tokens = Counter(
            "matryo_tokens",
            "Tokens embedded, padding not counted.",
            shape,
            registry=registry,
        )

        self.batch_texts = Histogram(
            "matryo_batch_texts",
            "Texts in a batch.",
            ("model",),
            buckets=_COUNTS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "matryo_batch_tokens",
            "Tokens in a batch, padding not counted.",
            ("model",),
            buckets=_TOKENS,
            registry=registry,
        )
        self.padding_tokens = Counter(
            "matryo_padding_tokens",
            "Padding tokens that the matrix products computed too. 0 for graphs that Matryo built, "
            "which pad only attention.",
            ("model",),
            registry=registry,
        )

        self.queue_tokens = Gauge(
            "matryo_queue_tokens",
            "Tokens admitted and not answered yet.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.connections = Gauge(
            "matryo_connections",
            "Open HTTP connections.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.dropped_connections = Counter(
            "matryo_dropped_connections",
            "Connections that the server ended: silent, idle, displaced by a new one, slow_reader, "
            "full, where no room could be made for a new one, or tls, where a handshake failed.",
            ("reason",),
            registry=registry,
        )
        self.loop_lag_seconds = Histogram(
            "matryo_loop_lag_seconds",
            "How late the event loop ran a timer, measured twenty times a second.",
            buckets=_LAG_S,
            registry=registry,
        )
        self.memory_held = Gauge(
            "matryo_memory_held_bytes",
            "Bytes of MATRYO_MEMORY_BUDGET_BYTES that requests hold now.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.rejections = Counter(
            "matryo_rejections",
            "Requests refused. queue_full: too many tokens wait; requests: too many requests wait; "
            "wait: the answer would come too late; draining: the service is shutting down.",
            ("reason",),
            registry=registry,
        )
        self.truncations = Counter(
            "matryo_truncations",
            "Texts cut to the model's limit.",
            ("model",),
            registry=registry,
        )
        self.unknown_texts = Counter(
            "matryo_unknown_texts",
            "Texts with characters or words that the model's vocabulary lacks.",
            ("model",),
            registry=registry,
        )
        self.cancellations = Counter(
            "matryo_cancellations",
            "Texts dropped because their caller disconnected before they ran.",
            ("model",),
            registry=registry,
        )
        self.failures = Counter(
            "matryo_failures",
            "Batches that failed in the engine.",
            ("model",),
            registry=registry,
        )
        self.log_lines_dropped = Counter(
            "matryo_log_lines_dropped",
            "Log lines lost because nobody read standard error, or because a write failed.",
            registry=registry,
        )
        self.reloads = Counter(
            "matryo_reloads",
            "Files read again while the server runs. refused: the files were wrong, and those of "
            "before stay in use.",
            ("what", "outcome"),
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "matryo_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use on a port, http or grpc, expires, in seconds since 1970.",
            ("port",),
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.ready = Gauge(
            "matryo_ready",
            "1 if /readyz answers 200. With several processes, 1 only if all of them are ready.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        # A Gauge, because an Info does not support several processes. A scrape shows the same text.
        self.build_info = Gauge(
            "matryo_build_info",
            "Version, precision and fingerprint of each served model. Always 1.",
            ("model", "version", "precision", "fingerprint"),
            multiprocess_mode="livemax",
            registry=registry,
        )

        # A request counts in a dozen series; looking each of them up by its labels costs 2 % of it.
        for member in vars(self).values():
            if isinstance(member, (Counter, Gauge, Histogram)):
                metric: Any = member
                metric.labels = functools.lru_cache(_SERIES)(metric.labels)

    def exported(self) -> CollectorRegistry:
        """The registry that a scrape reads, of this process or of all server processes together."""
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return self.registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # pyright: ignore[reportUnknownParameterType]
        return registry

    def start_at_zero(self, models: Iterable[str]) -> None:
        """Create the series of rare events with the value 0.

        An alert on the rate of a counter cannot see the first event of a series that begins with
        that event.

        Args:
            models: ids of the served models.
        """
        for reason in REJECTION_REASONS:
            self.rejections.labels(reason)
        for reason in DROP_REASONS:
            self.dropped_connections.labels(reason)
        for model in models:
            for counter in (
                self.truncations,
                self.unknown_texts,
                self.cancellations,
                self.failures,
            ):
                counter.labels(model)
