"""The work on one batch that this process has claimed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from matryo.batch.claims import Claim
from matryo.batch.lines import FileCheck, LineLimits
from matryo.batch.objects import Batch, Ending, LineError, WindowResult
from matryo.batch.patience import Patience
from matryo.batch.reading import Input
from matryo.batch.storage import Storage
from matryo.batch.windows import Door, Window, answer_window, expire_window, window_limits
from matryo.core.errors import RequestError, Stopping, StorageDamaged, StorageQuotaReached
from matryo.core.metrics import Metrics
from matryo.service import Caller, Service

log = logging.getLogger("matryo")

T = TypeVar("T")

_AHEAD = 3  # windows: one is committed, one computed, one parsed and tokenised


@dataclass(frozen=True, slots=True)
class JobConfig:
    """How batches are worked on.

    Attributes:
        limits: of an input file.
        lease_s: seconds after which others take over a batch whose lease was not renewed.
        look_s: most seconds between two looks at whether a batch was cancelled.
        now: seconds since 1970 UTC.
    """

    limits: LineLimits = field(default_factory=LineLimits)
    lease_s: float = 60.0
    look_s: float = 2.0
    now: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Tools:
    """What a job works with.

    Attributes:
        storage: has the input.
        patience: makes every call of the storage.
        door: answers the lines.
        service: has the models and the keys.
        metrics: what is counted.
        nudged: set when a batch may have been cancelled.
    """

    storage: Storage
    patience: Patience
    door: Door
    service: Service
    metrics: Metrics
    nudged: asyncio.Event


class Job:
    """One claimed batch, from where it stands to its end.

    Args:
        claim: of the batch.
        tools: to work with.
        config: see `JobConfig`.
    """

    def __init__(self, claim: Claim, tools: Tools, config: JobConfig) -> None:
        self._claim = claim
        self._tools = tools
        self._config = config
        self._lock = asyncio.Lock()  # one thread at a time may use a claim
        batch = claim.batch
        # Without an allowance: the lines of batches have no limits of a minute or a day.
        self._caller = Caller(batch.owner or None, batch.caller_weight)
        service = tools.service
        self._window = window_limits(service.directory.largest, service.limits.max_texts)

    async def run(self) -> None:
        """Work on the batch until it has ended.

        Raises:
            NotReady: the server is stopping; what is committed stays.
            LeaseLost: another process has the batch.
        """
        ending = self._ending_of(self._claim.batch)
        if ending is None:
            work = asyncio.ensure_future(self._work())
            watch = asyncio.ensure_future(self._watch())
            try:
                await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
                first = work if work.done() else watch
                ending = first.result()
            finally:
                for task in (work, watch):
                    task.cancel()
                await asyncio.gather(work, watch, return_exceptions=True)
        if ending is None:
            return
        if ending == "expired":
            await self._expire()
        batch = await self._call(partial(self._claim.finish, ending))
        counts = batch.counts
        log.info(
            "batch %s: %s, %d of %d lines completed, %d failed",
            batch.id,
            batch.status,
            counts.completed,
            counts.total,
            counts.failed,
        )

    def _input(self) -> Input:
        """The input, from the first line that is not committed."""
        tools = self._tools
        return Input(self._claim, tools.storage, tools.patience, self._config.limits)

    async def _call(self, work: Callable[[], T]) -> T:
        """The result of a call of the claim."""
        return await self._tools.patience.call(work, self._lock)

    def _ending_of(self, batch: Batch) -> Ending | None:
        """How a batch must end now; None to go on."""
        if batch.status in ("cancelling", "cancelled"):
            return "cancelled"
        if batch.status == "finalizing":  # a process ended before it had finished the batch
            is_done = self._claim.progress.n_bytes >= self._claim.input.n_bytes
            return "completed" if is_done else "expired"
        return "expired" if batch.expires_at <= self._config.now() else None

    async def _watch(self) -> Ending:
        """Renew the lease until the batch must end; returns how."""
        pause_s = min(self._config.look_s, self._config.lease_s / 4)
        nudged = self._tools.nudged
        while True:
            await self._tools.patience.pause(pause_s, nudged)
            nudged.clear()
            if ending := self._ending_of(await self._call(self._claim.renew)):
                return ending

    async def _work(self) -> Ending | None:
        """Check the input, then answer its windows; None for an input that was refused."""
        if self._claim.batch.status == "validating":
            checked = await self._check()
            if isinstance(checked, tuple):
                batch = await self._call(partial(self._claim.reject, checked))
                log.info("batch %s: %s, the input was refused", batch.id, batch.status)
                return self._ending_of(batch)
            batch = await self._call(checked)
            if ending := self._ending_of(batch):
                return ending
        await self._answer()
        return "completed"

    async def _check(self) -> tuple[LineError, ...] | Callable[[], Batch]:
        """What is wrong with the input; or, if nothing is, the call that begins the batch."""
        batch = self._claim.batch
        check = FileCheck(batch.endpoint, self._config.limits)
        lines = self._input()
        try:
            while await lines.check_some(check):
                pass
        except (RequestError, StorageDamaged) as exc:
            log.warning("batch %s: the input cannot be read: %s", batch.id, exc.message)
            return (LineError("input_file_unreadable", "The input file cannot be read."),)
        found = check.finish()
        if found.errors:
            return found.errors
        try:
            engine, _ = self._tools.service.directory.resolve(found.model)
            if known := self._tools.service.keys.named(batch.owner):
                known.check_model(engine.manifest.id)
        except RequestError as exc:
            return (LineError("model_not_found", exc.message, 1, "body.model"),)
        model = found.model or engine.manifest.id
        return partial(self._claim.begin, found.n_lines, model)

    async def _answer(self) -> None:
        """Answer and commit what is left of the input."""
        stopping = self._tools.patience.stopping
        windows = self._input()
        under_way: deque[asyncio.Task[WindowResult]] = deque()
        try:
            window = await windows.next_window(self._window)
            while window and not stopping.is_set():
                under_way.append(asyncio.create_task(self._timed(window)))
                if len(under_way) >= _AHEAD:
                    await self._commit(await under_way.popleft())
                window = await windows.next_window(self._window)
            while under_way:
                await self._commit(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        if window:
            raise Stopping

    async def _expire(self) -> None:
        """Commit an error for each line that was not answered in time."""
        if self._claim.batch.status == "validating":
            return
        windows = self._input()
        with contextlib.suppress(StorageQuotaReached):
            while window := await windows.next_window(self._window):
                result = await asyncio.to_thread(expire_window, window, self._claim.batch.id)
                await self._commit(result)

    async def _timed(self, window: Window) -> WindowResult:
        """The result of a window."""
        with self._tools.metrics.batch_windows_seconds.time():
            return await answer_window(window, self._tools.door, self._caller, self._claim.batch.id)

    async def _commit(self, result: WindowResult) -> None:
        """Put the result of a window into the batch, and count it."""
        await self._call(partial(self._claim.commit, result))
        metrics = self._tools.metrics
        metrics.batch_lines.labels("completed").inc(result.n_completed)
        metrics.batch_lines.labels("failed").inc(result.n_failed)
        metrics.batch_line_tokens.inc(result.n_tokens)
