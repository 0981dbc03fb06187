"""What the service says about its requests to a tracer, and the tracer that does nothing.

A tracer is made once by `matryo.assembly` and handed down like `Metrics`; nothing is global. A span
is handed down with its request. `matryo.core.otel` has the tracer that records, and is the only
importer of OpenTelemetry: a server without tracing never loads that package.

No attribute ever holds a text, a key, or another string that a caller made up, but for the path of
an HTTP request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Value = str | int | float | bool | Sequence[str] | None
"""Of an attribute. An attribute whose value is None is left out."""
Attributes = Mapping[str, Value]
Header = Callable[[str], str | None]
"""Gives the value of a header of W3C's trace context; None if the request has no such header."""

MOST_LINKS = 64
"""Links of one span."""
MOST_STAGES = 64
"""Children of the span of one request. A stream of messages may have stages without end."""


class Batch(Protocol):
    """The span of one run of a batch, a trace of its own."""

    def end(self, error: BaseException | None = None) -> None:
        """Note that the run ended, with an error where there was one."""
        ...


class Passage(Protocol):
    """The way of some texts of a request through the scheduler: the stages queue and inference."""

    def end(self) -> None:
        """Note that no text waits or runs any more."""
        ...


class Span(Protocol):
    """A request of one door, or a call within a request."""

    @property
    def trace_id(self) -> str | None:
        """32 hexadecimal digits; None where nothing is recorded."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """`trace_id` and `span_id` for log lines; empty where nothing is recorded."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add attributes, in place of those of the same names."""
        ...

    def stage(self, name: str) -> AbstractContextManager[object]:
        """A child that lasts as long as the block."""
        ...

    def passage(self) -> Passage:
        """Begin a way through the scheduler: the texts are admitted now."""
        ...

    def call(self, name: str) -> Span:
        """A child that is ended like a request, for a door whose request has several calls."""
        ...

    def end(self, name: str, error: str | None = None, *, is_fault: bool = False) -> None:
        """End the span.

        Args:
            name: of the span; known at the end, when the route and the model are.
            error: low-cardinality kind of the error; None for success.
            is_fault: whether the error is the server's, which makes the span's status an error.
        """
        ...


class Tracer(Protocol):
    """Makes spans."""

    @property
    def is_on(self) -> bool:
        """Whether any span may be recorded."""
        ...

    def request(self, name: str, header: Header, attributes: Attributes, *, under: Span) -> Span:
        """The span of a request that begins now.

        Args:
            name: until the span ends; a sampler sees this name.
            header: of the request; see `Header`.
            attributes: that are known now; a sampler sees them.
            under: the span of a transport that carries the request. A request without a trace
                context of its own is a child of that span, and links to that span otherwise.
        """
        ...

    def batch(self, model: str, passages: Collection[Passage], attributes: Attributes) -> Batch:
        """The span of a run that begins now with texts of these passages."""
        ...

    def close(self, timeout_s: float) -> None:
        """Export what is left, for so many seconds at most. Blocks: call this on a thread."""
        ...


class _NoBatch:
    def end(self, error: BaseException | None = None) -> None:
        """Do nothing."""


class _NoPassage:
    def end(self) -> None:
        """Do nothing."""


_STAGE = nullcontext()


class _NoSpan:
    trace_id: str | None = None
    facts: Mapping[str, str] = {}

    def set(self, attributes: Attributes) -> None:
        """Do nothing."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        """A block that does nothing."""
        del name
        return _STAGE

    def passage(self) -> Passage:
        """A passage that does nothing."""
        return NO_PASSAGE

    def call(self, name: str) -> Span:
        """The same span, which does nothing."""
        del name
        return self

    def end(self, name: str, error: str | None = None, *, is_fault: bool = False) -> None:
        """Do nothing."""


class _NoTracer:
    is_on = False

    def request(self, name: str, header: Header, attributes: Attributes, *, under: Span) -> Span:
        """A span that does nothing."""
        del name, header, attributes, under
        return NO_SPAN

    def batch(self, model: str, passages: Collection[Passage], attributes: Attributes) -> Batch:
        """A span that does nothing."""
        del model, passages, attributes
        return NO_BATCH

    def close(self, timeout_s: float) -> None:
        """Do nothing."""


NO_BATCH: Batch = _NoBatch()
NO_PASSAGE: Passage = _NoPassage()
NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()
