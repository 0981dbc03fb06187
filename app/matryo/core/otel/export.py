"""Where spans and the metric go, as OpenTelemetry's own variables (`OTEL_*`) say.

Spans wait in a bounded queue, and a thread of the SDK sends them: the event loop never waits for a
collector. A span that finds the queue full is dropped.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from matryo.core import trace_names as names
from matryo.core.errors import SettingsInvalid
from matryo.core.otel.spans import OtelTracer
from matryo.core.otel.warnings import Warnings
from matryo.core.tracing import NO_TRACER, Tracer

_Signal = Literal["traces", "metrics"]
_REFUSED_S = 1.0  # that a start which is refused waits for its threads
_HTTP, _GRPC = "http/protobuf", "grpc"
_PROTOCOLS = {_HTTP: "http", _GRPC: "grpc"}
_MODULES: dict[_Signal, tuple[str, str]] = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}


def build_otel_tracer(version: str) -> Tracer:
    """The tracer of this process, whose threads run already.

    Args:
        version: of the service.

    Raises:
        SettingsInvalid: a variable has a value that cannot be used, or a package is missing.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return NO_TRACER
    sends_traces = _is_exported("traces", default="otlp")
    # A collector of traces alone would refuse the metric at every interval.
    sends_metrics = _is_exported("metrics", default="none")
    if not sends_traces and not sends_metrics:
        return NO_TRACER
    with ExitStack() as stack:
        warnings = Warnings()
        stack.callback(warnings.close)
        closing: list[Callable[[], object]] = []
        stack.callback(_run_all, closing, _REFUSED_S)
        try:
            resource = _resource(version)
            # None stands for the sampler of OTEL_TRACES_SAMPLER.
            sampler = None if sends_traces else ALWAYS_OFF
            provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
            record: Callable[[ReadableSpan], None] = _nothing
            if sends_traces:
                processor = BatchSpanProcessor(_exporter("traces"))
                closing.append(processor.shutdown)
                provider.add_span_processor(processor)
                record = processor.on_end
            meters = _meter_provider(resource) if sends_metrics else None
            if meters:
                closing.append(meters.shutdown)
        except ValueError as exc:
            raise SettingsInvalid(
                f"a variable of OpenTelemetry cannot be used: {exc}. Correct the variable that "
                "starts with OTEL_, or unset it."
            ) from exc
        stack.pop_all()  # the tracer closes them
    durations = meters and meters.get_meter(names.SERVICE_NAME).create_histogram(
        names.REQUEST_DURATION, unit="s", description="Time of a request to its last byte."
    )

    def end(timeout_s: float) -> None:
        _run_all(closing, timeout_s)
        warnings.close()

    return OtelTracer(provider, record, durations, end)


def _nothing(_: ReadableSpan) -> None:
    """Take no span: nothing is recorded without an exporter."""


def _is_exported(signal: _Signal, *, default: str) -> bool:
    """Whether a signal goes to a collector.

    Raises:
        SettingsInvalid: another exporter is asked for.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    chosen = os.environ.get(variable, "").strip().lower() or default
    if chosen not in ("otlp", "none"):
        raise SettingsInvalid(
            f"{variable} is {chosen[:64]!r}, but must be otlp or none. Point a collector's OTLP "
            "receiver at other systems."
        )
    return chosen == "otlp"


def _exporter(signal: _Signal) -> Any:  # noqa: ANN401 - of one of four classes
    """The exporter of a signal, by the protocol that the environment asks for.

    Raises:
        SettingsInvalid: an unknown protocol, or the package of the protocol is missing.
    """
    variables = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((one for one in variables if os.environ.get(one, "").strip()), variables[1])
    protocol = os.environ.get(variable, "").strip().lower() or _HTTP
    if protocol not in _PROTOCOLS:
        raise SettingsInvalid(
            f"{variable} is {protocol[:64]!r}, but must be {' or '.join(_PROTOCOLS)}."
        )
    module, name = _MODULES[signal]
    package = f"opentelemetry.exporter.otlp.proto.{_PROTOCOLS[protocol]}"
    try:
        exporter = getattr(importlib.import_module(f"{package}.{module}"), name)
    except ModuleNotFoundError as exc:
        extra = "otel-grpc" if protocol == _GRPC else "otel"
        raise SettingsInvalid(
            f"{variable} is {protocol}, but the package for this protocol is not installed. "
            f"Install it with: pip install 'matryo[{extra}]'"
        ) from exc
    return exporter()


def _resource(version: str) -> Resource:
    """What every span says of this process; the environment's attributes win.

    The SDK adds an id of the process.
    """
    given = Resource.create()
    named = str(given.attributes.get("service.name", ""))
    if named.startswith("unknown_service"):  # the SDK's own default
        given = given.merge(Resource({"service.name": names.SERVICE_NAME}))
    return Resource({"service.version": version}).merge(given)


def _meter_provider(resource: Resource) -> MeterProvider:
    buckets = ExplicitBucketHistogramAggregation(names.REQUEST_DURATION_BUCKETS_S)
    return MeterProvider(
        metric_readers=[PeriodicExportingMetricReader(_exporter("metrics"))],
        resource=resource,
        views=[View(instrument_name=names.REQUEST_DURATION, aggregation=buckets)],
        shutdown_on_exit=False,
    )


def _run_all(calls: list[Callable[[], object]], timeout_s: float) -> None:
    """Run some calls side by side, for so many seconds at most.

    The SDK's own calls may wait for a collector for half a minute. A thread that is left does not
    keep the process alive.
    """
    ends = time.monotonic() + timeout_s
    threads = [threading.Thread(target=call, name="matryo-flush", daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
