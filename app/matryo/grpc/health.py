"""gRPC's health protocol, which tells what `/readyz` tells, for the server and for each model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from matryo.core.errors import InvalidRequest, Overloaded, UnknownModel
from matryo.grpc.aio import Methods
from matryo.grpc.calls import Call, Door, handlers_of
from matryo.grpc.messages import Message, make

SERVICE = "grpc.health.v1.Health"

_LOOK_S = 0.25  # a model becomes unready by time alone, so that there is no event to wait for
_MOST_WATCHES = 256  # anybody may watch, and each watch is a call that does not end

_ANSWER = make("grpc.health.v1.HealthCheckResponse")


class _Health:
    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(("", SERVICE, *services))
        self._n_watches = 0

    def status(self, call: Call, name: str) -> int:
        """The status of the server, of a service of this server, or of a model."""
        engines = ()
        if name not in self._services:
            try:
                engines = (call.service.directory.resolve(name)[0],)
            except UnknownModel:
                return _ANSWER.SERVICE_UNKNOWN
        ready = call.service.why_not_ready(*engines) is None
        return _ANSWER.SERVING if ready else _ANSWER.NOT_SERVING

    async def check(self, call: Call, message: Message) -> bytes:
        """The status now."""
        status = self.status(call, message.service)
        if status == _ANSWER.SERVICE_UNKNOWN:
            raise UnknownModel(message.service, served=call.service.directory.ids)
        return _ANSWER(status=status).SerializeToString()

    async def watch(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The status now, and then each other status, until the server stops."""
        message = await call.read()
        if message is None:
            raise InvalidRequest("The call has no message. Watch takes one HealthCheckRequest.")
        if self._n_watches >= _MOST_WATCHES:
            raise Overloaded(
                resource="health watches",
                requested=1,
                used=self._n_watches,
                limit=_MOST_WATCHES,
                retry_after_s=60,
            )
        self._n_watches += 1
        try:
            last = None
            while True:
                ends = call.draining.is_set()
                status = self.status(call, message.service)
                if status != last:
                    last = status
                    yield _ANSWER(status=status).SerializeToString()
                if ends:
                    return
                await _unless_set(call.draining, _LOOK_S)
        finally:
            self._n_watches -= 1


async def _unless_set(event: asyncio.Event, seconds: float) -> None:
    """Return after so many seconds, or when the event is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def handlers(door: Door, services: Sequence[str]) -> dict[str, Methods]:
    """The service; no key is asked.

    Args:
        door: what every call needs.
        services: names of the other services of this server.
    """
    health = _Health(services)
    answers = {"Check": health.check, "Watch": health.watch}
    return handlers_of(door, SERVICE, answers, keyless=answers)
