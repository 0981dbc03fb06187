"""Tasks that never end: a task that died starts anew, and the heartbeat runs idle models."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from matryo.core.errors import EngineError, NotReady
from matryo.core.memory import release_free_memory
from matryo.engine import Engine
from matryo.scheduler.health import Health

log = logging.getLogger(__name__)


async def run_forever(
    body: Callable[[], Awaitable[None]], *, on_death: Callable[[], None], restart_s: float
) -> None:
    """Run `body` again whenever it ends with an exception; a cancellation ends it for good.

    Args:
        body: a task without an end.
        on_death: called after every exception.
        restart_s: pause before `body` starts anew.
    """
    while True:
        try:
            await body()
        except Exception:
            log.exception("a worker died; its jobs fail and another takes its place")
            on_death()
            task = asyncio.current_task()
            if task and task.cancelling():  # the exception has taken the cancellation's place
                raise asyncio.CancelledError from None
            await asyncio.sleep(restart_s)


class Heartbeat:
    """Runs every model that did not run lately, and at once a model whose run failed.

    Args:
        health: says which models are due.
        probe: runs a model once.
        failed: is set when a run failed.
        pause_s: seconds between two tries, at least.
        is_idle: whether nothing is admitted; a moment to give memory back.
        is_draining: whether nothing is admitted any more; no model is run then.
        count: called with a model that was run, and `ok` or `failed`.
    """

    def __init__(
        self,
        health: Health,
        probe: Callable[[Engine], Awaitable[None]],
        failed: asyncio.Event,
        *,
        pause_s: float,
        is_idle: Callable[[], bool],
        is_draining: Callable[[], bool],
        count: Callable[[Engine, str], None],
    ) -> None:
        self._health = health
        self._probe = probe
        self._failed = failed
        self._pause_s = pause_s
        self._is_idle = is_idle
        self._is_draining = is_draining
        self._count = count

    async def beat(self) -> None:
        """Beat for ever."""
        while True:
            # Not wait_for: before Python 3.12 wait_for swallows a cancellation that comes in the
            # same turn of the loop as the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._health.pause_s):
                    await self._failed.wait()
            self._failed.clear()
            if self._is_idle():
                await asyncio.to_thread(release_free_memory)
            for engine in self._health.due():
                if not self._is_draining():
                    await self._look_at(engine)
            # A model that fails every run must not turn this loop into a busy one.
            await asyncio.sleep(self._pause_s)

    async def _look_at(self, engine: Engine) -> None:
        try:
            await self._probe(engine)
        except EngineError:  # logged where the run failed
            self._health.failed(engine)
            self._count(engine, "failed")
        except NotReady:
            pass  # draining began meanwhile
        else:
            self._count(engine, "ok")
