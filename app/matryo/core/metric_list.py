"""Every metric of the service: names, labels, buckets, and how several processes add up.

Names follow Prometheus' rules: `matryo_` first, the unit last, and `_total` after counters. A label
has only values that the server knows, such as served models, input types and trained sizes. It
never has a text that a caller sent, because callers could then add series without end.
`docs/metrics.md` says what each metric is for.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

DOORS = ("openai", "batch", "tei", "encoderfile", "grpc", "mcp", "operations", "none")
LANES = ("query", "bulk")
DIRECTIONS = ("in", "out")
HOLDERS = ("body", "texts", "tokens", "vectors", "answer", "connection")
LIMIT_REASONS = ("rate_requests", "rate_tokens", "quota")
REJECTION_REASONS = ("queue_full", "requests", "wait", "memory", "draining", *LIMIT_REASONS)
ABORT_REASONS = ("hang_up", "deadline", "slow_reader", "displaced", "stopping")
DROP_REASONS = ("silent", "idle", "displaced", "slow_reader", "full", "tls")
START_STEPS = ("pull", "build", "load")
RELOADS = ("keys", "tls")
OUTCOMES = ("ok", "refused")
HEARTBEATS = ("ok", "failed")
BATCH_OUTCOMES = ("completed", "failed")


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
    120.0,
)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

_Mode = Literal["livesum", "livemax", "livemin"]
"""How the values of several processes become one; those of ended processes are left out."""

_LANE = ("model", "lane")
_OUTCOME = ("model", "outcome")
_SHAPE = ("model", "input_type", "dimensions")


class MetricList:
    """The metrics of one application.

    Args:
        registry: the registry of the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:  # noqa: PLR0915 - one for each metric
        self.registry = registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"matryo_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str, mode: _Mode = "livesum") -> Gauge:
            return Gauge(f"matryo_{name}", what, labels, multiprocess_mode=mode, registry=registry)

        def histogram(name: str, what: str, *labels: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"matryo_{name}", what, labels, buckets=buckets, registry=registry)

        # --- requests
        self.requests = counter(
            "requests",
            "Requests and calls that ended. Status 499: the caller was gone before the answer.",
            "door",
            "route",
            "model",
            "status",
        )
        self.request_seconds = histogram(
            "request_seconds",
            "Time from the head of a request, or the start of a call, to the end of its answer.",
            "door",
            "model",
            "input_type",
            "status",
            buckets=_SLOW_S,
        )
        self.requests_in_progress = gauge(
            "requests_in_progress", "Requests and calls that have not ended."
        )
        self.rejections = counter(
            "rejections", "Requests refused because there was no room, by reason.", "reason"
        )
        self.aborts = counter(
            "aborts", "Requests that ended before they had their whole answer, by reason.", "reason"
        )
        self.http_refusals = counter(
            "http_refusals",
            "Requests refused before they reached a route; not in matryo_requests_total.",
            "status",
        )

        # --- callers
        self.caller_requests = counter(
            "caller_requests", "Requests that ended, by the name of their key.", "key", "status"
        )
        self.caller_tokens = counter(
            "caller_tokens", "Tokens embedded, by the name of the request's key.", "key"
        )
        self.caller_rejections = counter(
            "caller_rejections", "Requests refused, by the name of their key.", "key", "reason"
        )
        self.keys_loaded = gauge("keys_loaded", "Keys that may call now.", mode="livemin")
        self.reloads = counter(
            "reloads", "Files read again: keys or certificates.", "what", "outcome"
        )
        self.certificate_expiry = gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "When the certificate of a port expires, in seconds since 1970.",
            "port",
            mode="livemin",
        )

        # --- the queue
        self.waiting_requests = gauge(
            "waiting_requests", "Admitted requests with a text that no run has taken.", *_LANE
        )
        self.waiting_texts = gauge(
            "waiting_texts", "Distinct texts that are admitted and that no run has taken.", *_LANE
        )
        self.queue_tokens = gauge("queue_tokens", "Tokens that are admitted and not computed.")
        self.backlog_seconds = gauge(
            "backlog_seconds",
            "Seconds that all workers need for what is admitted and not computed, at the measured "
            "speed. The sum over models is the backlog of the replica.",
            "model",
            mode="livemax",
        )
        self.oldest_wait_seconds = gauge(
            "oldest_wait_seconds",
            "Seconds for which no run has taken a text of the request that waits longest.",
            "model",
            mode="livemax",
        )
        self.cancellations = counter(
            "cancellations", "Texts dropped because their request ended before they ran.", "model"
        )

        # --- workers
        self.workers = gauge("workers", "Batches that can run at a time.")
        self.busy_workers = gauge("busy_workers", "Workers that run a batch for callers now.")
        self.busy_seconds = counter(
            "busy_seconds", "Seconds that workers spent on batches for callers.", "model"
        )
        self.speed = gauge(
            "speed_tokens_per_second",
            "Tokens a second that all workers together compute, as measured in recent batches.",
            "model",
        )
        self.heartbeats = counter(
            "heartbeats", "Runs of a model by the server itself, to know it is well.", *_OUTCOME
        )
        self.failures = counter("failures", "Batches that failed in the engine.", "model")

        # --- stages
        def stage(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            return histogram(f"{name}_seconds", what, "model", buckets=buckets)

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

        # --- texts
        self.texts = counter("texts", "Texts embedded.", *_SHAPE)
        self.tokens = counter("tokens", "Tokens embedded, padding not counted.", *_SHAPE)
        self.truncations = counter("truncations", "Texts cut to the model's limit.", "model")
        self.unknown_texts = counter(
            "unknown_texts",
            "Texts with characters or words that the model's vocabulary lacks.",
            "model",
        )

        # --- batches
        self.batch_texts = histogram("batch_texts", "Texts in a batch.", "model", buckets=_COUNTS)
        self.batch_tokens = histogram(
            "batch_tokens", "Tokens in a batch, padding not counted.", "model", buckets=_TOKENS
        )
        self.batch_fill_ratio = histogram(
            "batch_fill_ratio",
            "Tokens of a batch, divided by the tokens that the batch could have had.",
            "model",
            buckets=_TENTHS,
        )
        self.padding_tokens = counter(
            "padding_tokens",
            "Padding tokens that the matrix products computed too. 0 for graphs that Matryo built, "
            "which pad only attention.",
            "model",
        )

        # --- the Batch API
        self.batch_jobs = gauge(
            "batch_jobs", "Batches of the Batch API by status.", "status", mode="livemax"
        )
        self.batch_lines = counter(
            "batch_lines",
            "Lines of batches of the Batch API that were answered, by outcome.",
            "outcome",
        )
        self.batch_line_tokens = counter(
            "batch_line_tokens", "Tokens embedded for lines of batches of the Batch API."
        )
        self.batch_oldest_seconds = gauge(
            "batch_oldest_seconds",
            "Age of the oldest batch that has not ended; 0 if all have.",
            mode="livemax",
        )
        self.batch_next_expiry = gauge(
            "batch_next_expiry_timestamp_seconds",
            "When the window of a batch that has not ended is over next, in seconds since 1970; 0 "
            "if all have ended.",
            mode="livemax",
        )
        self.batch_stored_bytes = gauge(
            "batch_stored_bytes", "Bytes of all files of the Batch API.", mode="livemax"
        )
        self.batch_windows_seconds = histogram(
            "batch_windows_seconds",
            "Time to answer the lines of a batch that are read together.",
            buckets=_SLOW_S,
        )

        # --- memory and connections
        self.memory_held = gauge(
            "memory_held_bytes",
            "Bytes of the memory budget that requests hold now, by what they hold.",
            "holder",
        )
        self.memory_budget = gauge(
            "memory_budget_bytes", "Bytes that requests may hold; 0 for no bound."
        )
        self.bytes_in_flight = gauge(
            "bytes_in_flight",
            "in: bytes that have come of bodies that are not complete; out: bytes of answers that "
            "callers have not taken yet.",
            "direction",
        )
        self.connections = gauge("connections", "Open HTTP connections.")
        self.dropped_connections = counter(
            "dropped_connections", "Connections that the server ended, by reason.", "reason"
        )

        # --- the server
        self.ready = gauge(
            "ready",
            "1 if /readyz answers 200. With several processes, 1 only if all of them are ready.",
            mode="livemin",
        )
        # A Gauge, because an Info does not support several processes. A scrape shows the same text.
        self.build_info = gauge(
            "build_info",
            "Version, precision and fingerprint of each served model. Always 1.",
            "model",
            "version",
            "precision",
            "fingerprint",
            mode="livemax",
        )
        self.start_seconds = gauge(
            "start_seconds", "Seconds that a step of the start took.", "step", mode="livemax"
        )
        self.start_time_seconds = gauge(
            "start_time_seconds",
            "When the youngest process of the server started, in seconds since 1970.",
            mode="livemax",
        )
        self.loop_lag_seconds = histogram(
            "loop_lag_seconds",
            "How late the event loop ran a timer, measured twenty times a second.",
            buckets=_LAG_S,
        )
        self.cpu_seconds = counter("cpu_seconds", "CPU time that the server's processes used.")
        self.log_lines_dropped = counter(
            "log_lines_dropped",
            "Log lines lost because nobody read standard error, or because a write failed.",
        )
