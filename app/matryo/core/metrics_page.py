"""The text of docs/metrics.md: every metric, its labels, and the question that it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from matryo.core import metric_list
from matryo.core.metric_list import MetricList
from matryo.core.usage import Usage, processes_of

PREFIX = "matryo_"


@dataclass(frozen=True, slots=True)
class Use:
    """What a metric is for.

    Attributes:
        question: that the metric answers.
        query: in PromQL; empty where the value itself is the answer.
    """

    question: str
    query: str = ""


_GROUPS: dict[str, dict[str, Use]] = {
    "Requests": {
        "requests_total": Use(
            "How many requests come, through which door, and how do they end?",
            'sum by (status) (rate(matryo_requests_total{door!="operations"}[5m]))',
        ),
        "request_seconds": Use(
            "How long do callers wait for an answer? Hang-ups, refusals and probes are apart.",
            "histogram_quantile(0.5, sum by (le) (rate(matryo_request_seconds_bucket"
            '{door!~"operations|batch",status=~"200|OK"}[5m])))',
        ),
        "requests_in_progress": Use("How many callers wait now? A scrape counts itself."),
        "rejections_total": Use(
            "Which bound refuses requests?",
            "sum by (reason) (rate(matryo_rejections_total[5m]))",
        ),
        "aborts_total": Use(
            "Why do requests end without their answer: do callers give up, or does the server?",
            "sum by (reason) (rate(matryo_aborts_total[5m]))",
        ),
        "http_refusals_total": Use(
            "Does anything send what is no HTTP, or too large a head? These requests reached no "
            "route and are not in `matryo_requests_total`.",
            "sum by (status) (rate(matryo_http_refusals_total[5m]))",
        ),
    },
    "Callers": {
        "caller_requests_total": Use(
            "Who calls, and whose requests fail?",
            "topk(5, sum by (key) (rate(matryo_caller_requests_total[5m])))",
        ),
        "caller_tokens_total": Use(
            "Who uses the machine?", "topk(5, rate(matryo_caller_tokens_total[5m]))"
        ),
        "caller_rejections_total": Use(
            "Who is refused, and by which bound?",
            "sum by (key, reason) (rate(matryo_caller_rejections_total[5m]))",
        ),
        "keys_loaded": Use("Did the server take the keys that the file has?"),
        "reloads_total": Use(
            "Was a changed file of keys or certificates taken, or refused?",
            'increase(matryo_reloads_total{outcome="refused"}[1h])',
        ),
        "tls_certificate_expiry_timestamp_seconds": Use(
            "For how many days is the certificate good?",
            "(matryo_tls_certificate_expiry_timestamp_seconds - time()) / 86400",
        ),
    },
    "Queue": {
        "waiting_requests": Use("How many requests wait for a worker?"),
        "waiting_texts": Use("How many texts wait for a worker?"),
        "queue_tokens": Use("How near is the queue to `MATRYO_QUEUE_TOKENS`?"),
        "backlog_seconds": Use(
            "How many seconds of work wait? Beside the CPU, scale on the sum of models.",
            "avg(sum by (instance) (matryo_backlog_seconds))",
        ),
        "oldest_wait_seconds": Use("Is any request starved?", "max(matryo_oldest_wait_seconds)"),
        "cancellations_total": Use(
            "How much work was dropped because its caller left?",
            "rate(matryo_cancellations_total[5m])",
        ),
    },
    "Workers": {
        "workers": Use("How many batches can run at a time?"),
        "busy_workers": Use("How many of them run now?"),
        "busy_seconds_total": Use(
            "How busy is a replica?",
            "sum by (instance) (rate(matryo_busy_seconds_total[5m])) "
            "/ on (instance) matryo_workers",
        ),
        "speed_tokens_per_second": Use(
            "How fast is the model on this machine, with every worker busy?"
        ),
        "heartbeats_total": Use(
            "Do idle models still run? Heartbeats count here and in no other metric.",
            'increase(matryo_heartbeats_total{outcome="failed"}[10m])',
        ),
        "failures_total": Use("Do batches of callers fail?", "rate(matryo_failures_total[5m])"),
    },
    "Stages of a request": {
        "tokenize_seconds": Use(
            "Is tokenising slow? The wait for a thread is part of it.",
            "histogram_quantile(0.99, sum by (le) (rate(matryo_tokenize_seconds_bucket[5m])))",
        ),
        "queue_seconds": Use(
            "How long do texts wait for their run?",
            "histogram_quantile(0.99, sum by (le) (rate(matryo_queue_seconds_bucket[5m])))",
        ),
        "inference_seconds": Use(
            "How long does a batch run?",
            "histogram_quantile(0.5, sum by (le, model) "
            "(rate(matryo_inference_seconds_bucket[5m])))",
        ),
        "postprocess_seconds": Use("Is pooling slow?"),
        "encode_seconds": Use("Is writing answers slow?"),
    },
    "Texts": {
        "texts_total": Use(
            "What are texts embedded for, in which size?",
            "sum by (input_type, dimensions) (rate(matryo_texts_total[5m]))",
        ),
        "tokens_total": Use(
            "How many tokens a second does a model embed?",
            "sum by (model) (rate(matryo_tokens_total[5m]))",
        ),
        "truncations_total": Use("Do callers send texts that the model cannot read whole?"),
        "unknown_texts_total": Use("Do callers send texts in a script that the model lacks?"),
    },
    "Batches": {
        "batch_texts": Use("How many texts share a run?"),
        "batch_tokens": Use("How large are batches?"),
        "batch_fill_ratio": Use(
            "Are batches full? Near 0 the machine waits for callers, near 1 callers wait for it.",
            "sum(rate(matryo_batch_fill_ratio_sum[5m])) "
            "/ sum(rate(matryo_batch_fill_ratio_count[5m]))",
        ),
        "padding_tokens_total": Use(
            "How much is computed in vain?",
            "sum by (model) (rate(matryo_padding_tokens_total[5m])) "
            "/ sum by (model) (rate(matryo_tokens_total[5m]))",
        ),
    },
    "Batch API": {
        "batch_jobs": Use("How many batches are there, and how do they stand?"),
        "batch_lines_total": Use(
            "How fast do lines go, and how many fail?",
            "sum by (outcome) (rate(matryo_batch_lines_total[5m]))",
        ),
        "batch_line_tokens_total": Use(
            "Which share of all tokens are those of batches?",
            "sum(rate(matryo_batch_line_tokens_total[5m])) / sum(rate(matryo_tokens_total[5m]))",
        ),
        "batch_oldest_seconds": Use("For how long does the oldest batch wait for its end?"),
        "batch_next_expiry_timestamp_seconds": Use(
            "In how many hours is the window of a batch over?",
            "((matryo_batch_next_expiry_timestamp_seconds > 0) - time()) / 3600",
        ),
        "batch_stored_bytes": Use("How much do the files of batches take?"),
        "batch_windows_seconds": Use(
            "How long do the lines that are read together take?",
            "histogram_quantile(0.9, sum by (le) (rate(matryo_batch_windows_seconds_bucket[5m])))",
        ),
    },
    "Memory and connections": {
        "memory_held_bytes": Use(
            "What fills the memory budget?",
            "sum(matryo_memory_held_bytes) / sum(matryo_memory_budget_bytes)",
        ),
        "memory_budget_bytes": Use("How large is the budget?"),
        "bytes_in_flight": Use("Are uploads (`in`) or readers (`out`) slow?"),
        "connections": Use("How near is a process to `MATRYO_MAX_CONNECTIONS`?"),
        "dropped_connections_total": Use(
            "Why does the server end connections?",
            "sum by (reason) (rate(matryo_dropped_connections_total[5m]))",
        ),
    },
    "The server": {
        "ready": Use("Does `/readyz` answer 200?"),
        "build_info": Use(
            "Do all replicas serve the same vectors?",
            "count by (model) (count by (model, fingerprint) (matryo_build_info))",
        ),
        "start_seconds": Use("What takes long at a start?"),
        "start_time_seconds": Use(
            "Does a process start again and again?", "changes(matryo_start_time_seconds[15m])"
        ),
        "loop_lag_seconds": Use(
            "Does anything keep the server from answering?",
            "histogram_quantile(0.99, sum by (le) (rate(matryo_loop_lag_seconds_bucket[5m])))",
        ),
        "cpu_seconds_total": Use("How many cores are used?", "rate(matryo_cpu_seconds_total[5m])"),
        "resident_memory_bytes": Use(
            "How much memory does the server have? Files that its processes share count once, and "
            "the parent of several processes counts too. On Linux only."
        ),
        "open_files": Use("How near is the limit of open files? On Linux only."),
        "processes": Use("Do all `MATRYO_PROCESSES` serve? On Linux only."),
        "log_lines_dropped_total": Use("Are log lines lost?"),
    },
}

_MODEL = "ids of the served models, or empty where none is known"
_VALUES: dict[str, str] = {
    "door": ", ".join(metric_list.DOORS),
    "route": "the path of a route, `other` for unknown paths, or `/service/Method` of gRPC",
    "model": _MODEL,
    "input_type": "input types of the model, or empty where none is known",
    "status": "of HTTP (499: the caller was gone), or the name of gRPC's code",
    "lane": ", ".join(metric_list.LANES),
    "dimensions": "trained sizes, other",
    "key": "names of keys, empty on a server without keys",
    "what": ", ".join(metric_list.RELOADS),
    "port": "http, grpc",
    "holder": ", ".join(metric_list.HOLDERS),
    "direction": ", ".join(metric_list.DIRECTIONS),
    "step": ", ".join(metric_list.START_STEPS),
    "version": "of Matryo",
    "precision": "fp32, int8, q8, q4",
    "fingerprint": "names everything that shapes a vector",
}
"""The values of each label; those of a label that means several things are in `_OWN`."""
_OWN: dict[tuple[str, str], str] = {
    ("rejections_total", "reason"): ", ".join(metric_list.REJECTION_REASONS),
    ("caller_rejections_total", "reason"): ", ".join(metric_list.REJECTION_REASONS),
    ("aborts_total", "reason"): ", ".join(metric_list.ABORT_REASONS),
    ("dropped_connections_total", "reason"): ", ".join(metric_list.DROP_REASONS),
    ("reloads_total", "outcome"): ", ".join(metric_list.OUTCOMES),
    ("heartbeats_total", "outcome"): ", ".join(metric_list.HEARTBEATS),
    ("batch_lines_total", "outcome"): ", ".join(metric_list.BATCH_OUTCOMES),
    (
        "batch_jobs",
        "status",
    ): "validating, in_progress, finalizing, cancelling, and those of an end",
}
_UNITS = ("seconds", "bytes", "tokens", "texts", "requests", "ratio")

_INTRODUCTION = """# Metrics

`make metrics-page` writes this page from the code. [serve.md](serve.md#metrics) says how to scrape.

Counters and histograms change when something happens. Gauges are set before each scrape. With
`--processes N` a scrape adds up all processes, whose gauges are at most half a second old. The
backlog and the oldest wait are then those of the process with most, and `matryo_ready` is 1 only if
every process is ready. A label never has a text that a caller sent.

Every request and every call counts once in `matryo_requests_total` and in `matryo_request_seconds`.
The health routes, `/metrics`, `/docs`, the page for people, and the health and reflection services
of gRPC are the door `operations`. A request without a route is the door `none`.

A process that serves alone also has the metrics of the Python client, `process_*` and `python_*`.
"""


def uses() -> dict[str, Use]:
    """What each metric is for, by the name that a scrape shows; a histogram has its base name."""
    return {PREFIX + name: use for group in _GROUPS.values() for name, use in group.items()}


def page() -> str:
    """The text of docs/metrics.md."""
    known = {name: facts for name, *facts in _metrics()}
    parts = [_INTRODUCTION]
    for title, group in _GROUPS.items():
        parts.append(f"## {title}\n")
        for name, use in group.items():
            kind, labels, what = known[PREFIX + name]
            parts.append(_entry(name, kind, labels.split(), what, use))
    return "\n".join(parts)


def _entry(name: str, kind: str, labels: list[str], what: str, use: Use) -> str:
    words = [] if "_per_" in name else name.removesuffix("_total").split("_")
    unit = next((unit for unit in _UNITS if unit in words), "")
    lines = [f"### {PREFIX}{name}\n", f"A {kind}{f' of {unit}' if unit else ''}. {what}\n"]
    lines += [f"*{use.question}*\n"]
    if use.query:
        lines += ["```promql", use.query, "```\n"]
    if labels:
        lines += ["| label | values |", "|---|---|"]
        lines += [f"| `{label}` | {_values(name, label)} |" for label in labels]
        lines += [""]
    return "\n".join(lines)


def _values(name: str, label: str) -> str:
    return _OWN[name, label] if (name, label) in _OWN else _VALUES[label]


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, labels and meaning of every metric of the code."""
    registry = CollectorRegistry()
    for metric in vars(MetricList(registry)).values():
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            suffix = "_total" if family.type == "counter" else ""
            labels = " ".join(metric._labelnames)  # noqa: SLF001 - no other way to read them
            yield family.name + suffix, family.type, labels, family.documentation
    for family in Usage(processes_of(None)).describe():
        yield family.name, family.type, "", family.documentation
