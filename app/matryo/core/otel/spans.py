"""The spans of OpenTelemetry behind `matryo.core.tracing`.

Times are those of the system's clock in nanoseconds, the SDK's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from matryo.core import trace_names as names
from matryo.core.tracing import (
    MOST_LINKS,
    MOST_STAGES,
    NO_BATCH,
    NO_PASSAGE,
    NO_SPAN,
    Attributes,
    Batch,
    Header,
    Passage,
    Span,
)

_SCOPE = InstrumentationScope(names.SERVICE_NAME)
_IDS = RandomIdGenerator()
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_CONTEXT = TraceContextTextMapPropagator()
_HEADERS = ("traceparent", "tracestate")
_NOTHING = nullcontext()


Record = Callable[[ReadableSpan], None]
"""Takes a span that has ended, to export the span."""


def _ended(
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    resource: Resource,
    attributes: Attributes,
    links: Sequence[Link],
    times: tuple[int, int],
    status: Status,
) -> ReadableSpan:
    """A span inside of the service that has ended, for a sixth of the time that the SDK takes.

    Such a span is recorded because its request is. A sampler has nothing to decide.
    """
    return ReadableSpan(
        name,
        context,
        parent,
        resource,
        known(attributes),
        (),
        links,
        SpanKind.INTERNAL,
        status=status,
        start_time=times[0],
        end_time=times[1],
        instrumentation_scope=_SCOPE,
    )


class OtelBatch:
    """See `Batch`."""

    def __init__(
        self,
        name: str,
        resource: Resource,
        attributes: Attributes,
        links: Sequence[Link],
        started: int,
        record: Record,
    ) -> None:
        self._name, self._resource, self._record = name, resource, record
        self._attributes, self._links, self._started = dict(attributes), links, started
        flags = TraceFlags(TraceFlags.SAMPLED)
        trace_id, span_id = _IDS.generate_trace_id(), _IDS.generate_span_id()
        self.context = SpanContext(trace_id, span_id, is_remote=False, trace_flags=flags)

    def end(self, error: BaseException | None = None) -> None:
        """See `Batch`."""
        status = _UNSET
        if error is not None:
            self._attributes[names.ERROR_TYPE] = type(error).__name__
            status = _ERROR
        times = self._started, time.time_ns()
        self._record(
            _ended(
                self._name,
                self.context,
                None,
                self._resource,
                self._attributes,
                self._links,
                times,
                status,
            )
        )


class OtelPassage:
    """See `Passage`. However many runs a request has, it has two spans."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        self._admitted = time.time_ns()
        self._taken = 0
        self._n_batches = 0
        self._links: list[Link] = []

    @property
    def context(self) -> SpanContext:
        """Of the request."""
        return self._span.context

    def join(self, batch: SpanContext, now: int) -> None:
        """Note that a run took some of the texts."""
        self._taken = self._taken or now
        self._n_batches += 1
        if len(self._links) < MOST_LINKS:
            self._links.append(Link(batch))

    def end(self) -> None:
        """See `Passage`."""
        now = time.time_ns()
        self._span.child(names.QUEUE, self._admitted, self._taken or now)
        if self._taken:
            facts = {names.BATCHES: self._n_batches}
            self._span.child(names.INFERENCE, self._taken, now, facts, self._links)


class OtelSpan:
    """See `Span`.

    Args:
        tracer: of the SDK; makes calls.
        resource: of the children.
        record: takes the children.
        span: of the SDK; one that does not record, where only the metric counts the request.
        attributes: that the span has.
        durations: the metric of requests; None where no metric is exported.

    Attributes:
        context: names the span for links.
        as_parent: makes another span a child of this one.
    """

    def __init__(
        self,
        tracer: trace.Tracer,
        resource: Resource,
        record: Record,
        span: trace.Span,
        attributes: Attributes,
        durations: Histogram | None,
    ) -> None:
        self._tracer, self._resource, self._record = tracer, resource, record
        self._span = span
        self._durations = durations
        self._attributes = dict(attributes)
        self._started = time.perf_counter()
        self._n_stages = 0
        self._records = span.is_recording()
        self.as_parent = trace.set_span_in_context(span, Context())
        self.context = span.get_span_context()

    @property
    def trace_id(self) -> str | None:
        """See `Span`."""
        return trace.format_trace_id(self.context.trace_id) if self._records else None

    @property
    def facts(self) -> dict[str, str]:
        """See `Span`."""
        if not self._records:
            return {}
        return {
            "trace_id": trace.format_trace_id(self.context.trace_id),
            "span_id": trace.format_span_id(self.context.span_id),
        }

    def set(self, attributes: Attributes) -> None:
        """See `Span`."""
        self._attributes.update(attributes)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """See `Span`."""
        return self._stage(name) if self._records else _NOTHING

    @contextmanager
    def _stage(self, name: str) -> Generator[None, None, None]:
        started = time.time_ns()
        try:
            yield
        finally:
            self.child(name, started, time.time_ns())

    def child(
        self,
        name: str,
        started: int,
        ended: int,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        """Record a child that has ended, unless there are too many."""
        self._n_stages += 1
        if self._n_stages > MOST_STAGES:
            return
        own = SpanContext(
            self.context.trace_id,
            _IDS.generate_span_id(),
            is_remote=False,
            trace_flags=self.context.trace_flags,
            trace_state=self.context.trace_state,
        )
        self._record(
            _ended(
                name,
                own,
                self.context,
                self._resource,
                attributes or {},
                links,
                (started, ended),
                _UNSET,
            )
        )

    def passage(self) -> Passage:
        """See `Span`."""
        return OtelPassage(self) if self._records else NO_PASSAGE

    def call(self, name: str) -> Span:
        """See `Span`."""
        if not self._records and self._durations is None:
            return NO_SPAN
        span = self._tracer.start_span(name, self.as_parent)
        return OtelSpan(self._tracer, self._resource, self._record, span, {}, self._durations)

    def end(self, name: str, error: str | None = None, *, is_fault: bool = False) -> None:
        """See `Span`."""
        attributes = self._attributes
        if error is not None:
            attributes[names.ERROR_TYPE] = error
        if self._records:
            if self._n_stages > MOST_STAGES:
                attributes[names.STAGES_DROPPED] = self._n_stages - MOST_STAGES
            self._span.update_name(name)
            self._span.set_attributes(known(attributes))
            if is_fault:
                self._span.set_status(_ERROR)
            self._span.end()
        if self._durations and attributes.get(names.OPERATION) == names.EMBEDDINGS:
            spent_s = time.perf_counter() - self._started
            chosen = {key: attributes.get(key) for key in names.METRIC_ATTRIBUTES}
            self._durations.record(spent_s, known(chosen), context=self.as_parent)


class OtelTracer:
    """See `Tracer`.

    Args:
        provider: of spans of requests; its sampler decides which are recorded.
        record: takes the spans of batches and of stages.
        durations: the metric of requests; None where no metric is exported.
        close: see `Tracer.close`.
    """

    is_on = True

    def __init__(
        self,
        provider: TracerProvider,
        record: Record,
        durations: Histogram | None,
        close: Callable[[float], None],
    ) -> None:
        self._tracer = provider.get_tracer(names.SERVICE_NAME)
        self._resource = provider.resource
        self._record = record
        self._durations = durations
        self._close = close

    def request(self, name: str, header: Header, attributes: Attributes, *, under: Span) -> Span:
        """See `Tracer`."""
        given = {key: value for key in _HEADERS if (value := header(key)) is not None}
        parent = _CONTEXT.extract(given, Context()) if given else Context()
        links: tuple[Link, ...] = ()
        if isinstance(under, OtelSpan):
            if trace.get_current_span(parent).get_span_context().is_valid:
                links = (Link(under.context),)
            else:
                parent = under.as_parent
        span = self._tracer.start_span(
            name, parent, kind=SpanKind.SERVER, attributes=known(attributes), links=links
        )
        if not span.is_recording() and self._durations is None:
            return NO_SPAN
        return OtelSpan(
            self._tracer, self._resource, self._record, span, attributes, self._durations
        )

    def batch(self, model: str, passages: Collection[Passage], attributes: Attributes) -> Batch:
        """See `Tracer`. A run without a request that is recorded has no span."""
        found = [passage for passage in passages if isinstance(passage, OtelPassage)]
        if not found:
            return NO_BATCH
        now = time.time_ns()
        facts = {**attributes, names.REQUEST_MODEL: model, names.BATCH_REQUESTS: len(passages)}
        links = [Link(passage.context) for passage in found[:MOST_LINKS]]
        name = f"{names.INFERENCE} {model}"
        batch = OtelBatch(name, self._resource, facts, links, now, self._record)
        for passage in found:
            passage.join(batch.context, now)
        return batch

    def close(self, timeout_s: float) -> None:
        """See `Tracer`."""
        self._close(timeout_s)


def known(attributes: Attributes) -> dict[str, str | int | float | bool | Sequence[str]]:
    """The attributes that have a value."""
    return {key: value for key, value in attributes.items() if value is not None}
