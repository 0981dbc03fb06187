"""One call over gRPC: its id, key, message, lease, log line and status.

Every method is answered through `handlers_of`. The bytes of a message are read here, and not by the
library, which would answer bytes that are no message with `UNKNOWN`; no byte is read before the
key is known to be right. The library cancels the task of a call when the caller cancels or the
deadline passes, which frees the place in the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor

from matryo.core.budget import Lease
from matryo.core.errors import BodyTimeout, EmptyInput, InvalidRequest
from matryo.core.metrics import Metrics, RequestLabels
from matryo.core.tracing import NO_SPAN, Span
from matryo.grpc import traced
from matryo.grpc.aio import Methods
from matryo.grpc.errors import refusal
from matryo.grpc.messages import Message, methods_of, parse
from matryo.service import OPEN, Answer, Caller, Options, Service, Texts
from matryo.service.expectation import EXPECT, expected_of
from matryo.service.keys import key_of
from matryo.service.request_id import request_id_of

log = logging.getLogger("matryo.request")

_EOF = cast("Any", grpc.aio).EOF  # the stubs lack it

# A message, what protobuf makes of it, and its texts need at most so many times its bytes.
_MESSAGE_SHARES = 4
_PIECES_A_TEXT, _MORE_PIECES = 8, 4096  # fields of a message, by the texts that it may have


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the calls.

    Attributes:
        timeout_s: for a message to arrive, and for the next message of a stream to come.
        max_texts: of one call.
        max_calls: of the server, at a time; so many connections too.
    """

    timeout_s: float
    max_texts: int
    max_calls: int

    @property
    def max_fields(self) -> int:
        """Fields of one message, and of the messages in it."""
        return _PIECES_A_TEXT * self.max_texts + _MORE_PIECES


@dataclass(frozen=True, slots=True)
class Door:
    """What every call needs.

    Attributes:
        version: of the server.
        log_client: whether a log line has the address of the peer.
        draining: set once the server stops.
        server: address and port that the server listens on.
    """

    service: Service
    metrics: Metrics
    limits: Limits
    version: str
    log_client: bool
    draining: asyncio.Event
    server: tuple[str, int] = ("", 0)


class Call:
    """One call of one caller.

    Attributes:
        service: what answers.
        draining: set once the server stops.
        limits: of the calls.
        version: of the server.
        lease: bytes that the call holds until its end.
        request_id: of the call.
        caller: who calls, once `check_key` has been called.
        facts: values for the log line.
        asked: the options of the last message that asked for vectors.
        trailers: trailing metadata of the answer.
        span: of the call.
    """

    def __init__(self, door: Door, context: Any, method: MethodDescriptor) -> None:  # noqa: ANN401 - generic in grpc
        self._context = context
        self._input = cast("Any", method.input_type)
        self._door = door
        self.service = door.service
        self.draining = door.draining
        self.limits = door.limits
        self.version = door.version
        self.lease: Lease = door.service.budget.lease()
        self._metadata: Sequence[tuple[str, str | bytes]] = context.invocation_metadata() or ()
        self._given = dict(self._metadata)
        self.request_id = request_id_of(self.text("x-request-id"))
        self.span: Span = NO_SPAN
        self.caller: Caller = OPEN
        self.facts: dict[str, object] = {}
        self.asked = Options(self.model)
        self.trailers: dict[str, str] = {"x-request-id": self.request_id}

    def text(self, key: str) -> str | None:
        """The text of a key of the call's metadata; None if there is none."""
        value = self._given.get(key)
        return value if isinstance(value, str) else None

    @property
    def deadline_s(self) -> float | None:
        """Seconds that the caller still waits; None if it did not say."""
        return self._context.time_remaining()

    @property
    def model(self) -> str | None:
        """The model that the metadata of the call name; None for the default one."""
        return self.text("model") or None

    @property
    def peer(self) -> str:
        """Address of the caller."""
        return self._context.peer()

    def check_key(self) -> None:
        """Find out who calls, and count the call.

        Raises:
            Unauthorized: the server has keys, and the call shows none of them.
            RequestRateReached: the key has used up its requests.
        """
        key = key_of(self.text("authorization")) or (self.text("api-key") or "").strip()
        self.caller = self.service.keys.caller(key)
        if self.caller.name is not None:
            self.facts["key"] = self.caller.name
        self.service.begin(self.caller)
        self.lease = self.service.lease(self.caller)

    def final_trailers(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata, with what is left to the key now."""
        allowance = self.caller.allowance
        return tuple((self.trailers | (allowance.headers() if allowance else {})).items())

    async def read(self) -> Message | None:
        """The only message of the call; None if there is none.

        Raises:
            BodyTimeout: no message came in time.
            InvalidRequest: the bytes are no such message.
            Overloaded: the memory budget has no room for the message.
        """
        timeout_s = self.limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                raw = await self.read_raw()
        except TimeoutError as exc:
            raise BodyTimeout(timeout_s=timeout_s) from exc
        return None if raw is None else self.parsed(raw, self.lease)

    async def read_raw(self) -> bytes | None:
        """The bytes of the next message; None after the last one."""
        raw = await self._context.read()
        return None if raw is _EOF else raw

    def parsed(self, raw: bytes, lease: Lease) -> Message:
        """The message that some bytes hold.

        Args:
            raw: the bytes.
            lease: holds what the message needs from now on.

        Raises:
            InvalidRequest: the bytes are no such message.
            Overloaded: the memory budget has no room for the message.
        """
        lease.grow(_MESSAGE_SHARES * len(raw), "body")
        return parse(raw, self._input, self.limits.max_fields)

    async def embed(self, options: Options, texts: Texts, lease: Lease | None = None) -> Answer:
        """The vectors of texts; see `Service.embed`. The call's deadline is the patience.

        Args:
            options: what the caller chose.
            texts: at least one.
            lease: of one message of a stream, which has no patience of its own; None for the lease
                of the call.
        """
        self.asked = options
        options = replace(options, expect=self._expected())
        if lease is None:
            options = replace(options, deadline_s=self.deadline_s)
        answer = await self.service.embed(
            options,
            texts,
            self.caller,
            lease=self.lease if lease is None else lease,
            request_id=self.request_id,
            span=self.span,
        )
        self._note(answer)
        return answer

    def _expected(self) -> str | None:
        """The fingerprint that the metadata of the call expect; None for any."""
        values = (value for key, value in self._metadata if key == EXPECT)
        return expected_of([v if isinstance(v, str) else v.decode("latin-1") for v in values])

    def count_cancellation(self) -> grpc.StatusCode:
        """Count a call that the library ended, and return the code that its caller gets."""
        left_s = self.deadline_s
        if left_s is not None and left_s <= 0:
            self._door.metrics.aborts.labels("deadline").inc()
            return grpc.StatusCode.DEADLINE_EXCEEDED
        reason = "stopping" if self.draining.is_set() else "hang_up"
        self._door.metrics.aborts.labels(reason).inc()
        return grpc.StatusCode.CANCELLED

    def count(
        self, path: str, code: str, spent_s: float, error: Exception | None, *, keyed: bool
    ) -> None:
        """Count the call, which has ended.

        Args:
            path: full name of the method.
            code: name of the status.
            spent_s: seconds that the call took.
            error: that the call ended with; None if it was answered or cancelled.
            keyed: whether the method asks for a key; those that do not are for operators.
        """
        metrics, facts = self._door.metrics, self.facts
        door, model, input_type = "operations", "", ""
        if keyed:
            door = "grpc"
            model, input_type = self.service.describe(self.asked)
            facts["model"] = model or None
            if self.caller.name is not None or not self.service.keys:
                metrics.caller_requests.labels(self.caller.name or "", code).inc()
        metrics.count_request(RequestLabels(door, path, model, input_type, code), spent_s)
        if error:
            metrics.count_error(error, self.caller.name)

    def _note(self, answer: Answer) -> None:
        """Put what shaped an answer into the log line and the trailing metadata."""
        facts = self.facts
        for name, number in (
            ("texts", len(answer.lengths)),
            ("tokens", answer.n_tokens),
            ("truncated", len(answer.truncated)),
            ("unknown", len(answer.unknown)),
        ):
            if number:
                facts[name] = cast("int", facts.get(name, 0)) + number
        facts |= {
            "model": answer.model,
            "input_type": answer.input_type,
            "dimensions": answer.vectors.shape[1],
        }
        trailers = self.trailers
        # The messages of a stream may differ in what they ask for.
        if trailers.setdefault("x-matryo-fingerprint", answer.fingerprint) != answer.fingerprint:
            trailers["x-matryo-fingerprint"] = "mixed"
        for name in ("truncated", "unknown"):
            if number := facts.get(name):
                trailers[f"x-matryo-{name}"] = str(number)
        if answer.warnings:
            warning = "; ".join(answer.warnings)
            trailers["x-matryo-warning"] = warning.encode("ascii", "replace").decode()


def check_given(texts: Sequence[str], name: str) -> None:
    """Refuse a call without a text, or with an empty one.

    Args:
        texts: of the call.
        name: of the field that holds them.

    Raises:
        EmptyInput: there is no text, or one of them is empty.
    """
    if not texts:
        raise EmptyInput(f"Invalid {name!r}: there is no text. Send at least one.")
    for index, text in enumerate(texts):
        if not text:
            raise EmptyInput(
                f"Invalid {name!r}: the text at index {index} is empty. Leave empty texts out."
            )


Unary = Callable[[Call, Message], Awaitable[bytes]]
"""Answers a message; the bytes are those of the answer's message."""
Streaming = Callable[[Call], AsyncGenerator[bytes, None]]
"""Reads the messages of a call, and answers with a stream of messages."""


def handlers_of(
    door: Door,
    service: str,
    answers: Mapping[str, Unary | Streaming],
    *,
    name: str | None = None,
    keyless: Collection[str] = (),
) -> dict[str, Methods]:
    """The handlers of a service's methods, under its name.

    Args:
        door: what every call needs.
        service: full name of the service in `protos/`.
        answers: a `Unary` for each method that answers with one message, else a `Streaming`.
        name: the service goes by; None for its own.
        keyless: methods that need no key where the server has keys.
    """
    methods = methods_of(service)
    name = name or service
    return {
        name: {
            method: _handler(
                door, methods[method], f"/{name}/{method}", answer, keyed=method not in keyless
            )
            for method, answer in answers.items()
        }
    }


def _handler(
    door: Door, method: MethodDescriptor, path: str, answer: Unary | Streaming, *, keyed: bool
) -> grpc.RpcMethodHandler[Any, Any]:
    async def run(call: Call, context: Any) -> None:  # noqa: ANN401 - generic in grpc
        if streams:
            # Closed here and not some time later: what runs for a caller that is gone ends with it.
            async with aclosing(cast("Streaming", answer)(call)) as contents:
                async for content in contents:
                    await _write(context, content)
            return
        message = await call.read()
        if message is None:
            raise InvalidRequest(
                f"The call has no message, or a message that is too large. {path} takes one "
                f"{cast('Any', method.input_type).full_name}."
            )
        # Returns when the caller has taken the answer, or the connection has room for it. Until
        # then the lease holds the answer.
        await _write(context, await cast("Unary", answer)(call, message))

    streams = cast("Any", method).server_streaming

    async def handle(_: object, context: Any) -> None:  # noqa: ANN401 - generic in grpc
        await _answered(door, context, method, path, run, keyed=keyed)

    # On the wire, a call with one message and a stream of one message are the same. Only a handler
    # of streams decides when to read.
    return grpc.stream_stream_rpc_method_handler(handle)


async def _answered(
    door: Door,
    context: Any,  # noqa: ANN401 - generic in grpc
    method: MethodDescriptor,
    path: str,
    run: Callable[[Call, Any], Awaitable[None]],
    *,
    keyed: bool,
) -> None:
    """Answer a call with `run`, whose errors end the call with their status."""
    started = time.perf_counter()
    call = Call(door, context, method)
    door.metrics.n_in_progress += 1
    code = grpc.StatusCode.CANCELLED
    error: Exception | None = None
    if keyed:  # the others are probes
        call.span = traced.begin(door.service.tracer, path, call.text, call.request_id, door.server)
        call.facts |= call.span.facts
    try:
        try:
            if keyed:
                call.check_key()
            await run(call, context)
        except asyncio.CancelledError:
            code = call.count_cancellation()
            raise
        except Exception as exc:
            error = exc
            refused = refusal(exc, call.request_id)
            code = refused.code
            if code is grpc.StatusCode.INTERNAL:
                extra = {"request_id": call.request_id, **call.facts}
                log.exception("unhandled error", extra=extra)
            metadata = (*call.final_trailers(), *refused.trailers)
            await context.abort(refused.code, refused.details, metadata)
        else:
            code = grpc.StatusCode.OK
            context.set_trailing_metadata(call.final_trailers())
    finally:
        call.lease.end()
        door.metrics.n_in_progress -= 1
        spent_s = time.perf_counter() - started
        call.count(path, code.name, spent_s, error, keyed=keyed)
        if door.log_client:
            call.facts["client"] = call.peer
        traced.end(call.span, path, code, call.facts)
        extra = {"request_id": call.request_id, "code": code.name, "ms": round(spent_s * 1000, 2)}
        level = logging.INFO if keyed else logging.DEBUG
        log.log(level, "gRPC %s %s", path, code.name, extra=extra | call.facts)


async def _write(context: Any, content: bytes) -> None:  # noqa: ANN401 - generic in grpc
    try:
        await context.write(content)
    except grpc.aio.InternalError as exc:
        # The caller is gone, and the library is about to cancel this task.
        raise asyncio.CancelledError from exc
