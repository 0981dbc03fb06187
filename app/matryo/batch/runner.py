"""Works on the batches of the storage, one at a time in each process, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

from matryo.batch.claims import Claim
from matryo.batch.job import Job, JobConfig, Tools
from matryo.batch.objects import LeaseLost, Status
from matryo.batch.patience import Patience
from matryo.batch.storage import Storage
from matryo.batch.windows import Door
from matryo.core.errors import CapacityError, NotReady, StorageQuotaReached
from matryo.core.metrics import Metrics
from matryo.service import Service

log = logging.getLogger("matryo")

_STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """How a runner works.

    Attributes:
        job: how it works on one batch.
        idle_s: most seconds between two looks for a batch.
        care_s: seconds between two looks for batches that must end, and at the numbers of metrics.
        sweep_s: seconds between two removals of what has expired.
        pause_s: seconds after which a call of the storage that failed is made again.
        setback_s: seconds for which a batch rests whose work failed.
    """

    job: JobConfig = field(default_factory=JobConfig)
    idle_s: float = 1.0
    care_s: float = 5.0
    sweep_s: float = 600.0
    pause_s: float = 1.0
    setback_s: float = 60.0


class Runner:
    """Claims batches, answers their lines, and ends them.

    A server enters `run` as a task, and calls `drain` before it ends.

    Args:
        storage: has the batches.
        door: answers the lines.
        service: has the models and the keys.
        metrics: what is counted.
        config: see `RunnerConfig`.
    """

    def __init__(
        self,
        storage: Storage,
        door: Door,
        service: Service,
        metrics: Metrics,
        config: RunnerConfig | None = None,
    ) -> None:
        self._storage = storage
        self._metrics = metrics
        self._config = config or RunnerConfig()
        self._patience = Patience(self._config.pause_s)
        self._nudged = asyncio.Event()
        self._tools = Tools(storage, self._patience, door, service, metrics, self._nudged)
        self._ended = asyncio.Event()
        self._ended.set()

    def nudge(self) -> None:
        """Look at once: a batch was added or cancelled. For the event loop's thread."""
        self._nudged.set()

    async def drain(self, grace_s: float) -> None:
        """Take no further window; return once those under way are committed.

        What is not committed after `grace_s` is left to the next runner.
        """
        self._patience.stopping.set()
        self._nudged.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._ended.wait()

    async def run(self) -> None:
        """Work until `drain` is called, or until the call is cancelled."""
        self._ended.clear()
        care = asyncio.create_task(self._care())
        try:
            while not self._patience.stopping.is_set():
                try:
                    if claim := await self._patience.call(self._storage.claim):
                        await self._work(claim)
                        continue
                except NotReady:
                    pass  # the server is stopping
                except Exception:
                    log.exception("batches: no batch can be claimed, and it is tried again")
                await self._patience.pause(self._config.idle_s, self._nudged)
                self._nudged.clear()
        finally:
            care.cancel()
            await asyncio.gather(care, return_exceptions=True)
            self._ended.set()

    async def _work(self, claim: Claim) -> None:
        """Work on one batch; the batch is free again when this returns or raises."""
        batch_id, delay_s = claim.batch.id, 0.0
        try:
            await Job(claim, self._tools, self._config.job).run()
        except LeaseLost:
            log.warning("batch %s: another process has taken over the batch", batch_id)
            return
        except NotReady:
            pass  # the server is stopping
        except StorageQuotaReached as exc:
            log.warning("batch %s: there is no room for its results: %s", batch_id, exc.message)
            delay_s = self._config.setback_s
        except Exception:
            log.exception("batch %s: the work failed, and is tried again later", batch_id)
            delay_s = self._config.setback_s
        except asyncio.CancelledError:
            await self._release(claim, 0.0)
            raise
        await self._release(claim, delay_s)

    async def _release(self, claim: Claim, delay_s: float) -> None:
        """Give a batch up, unless it has ended; without an answer of the storage the lease ends."""
        with suppress(LeaseLost, CapacityError):
            await asyncio.shield(asyncio.to_thread(partial(claim.release, delay_s)))

    async def _care(self) -> None:
        """End batches that others have cancelled, remove what has expired, show numbers."""
        swept_at = 0.0
        while True:
            try:
                await self._show()
                if time.monotonic() - swept_at >= self._config.sweep_s or not swept_at:
                    swept_at = time.monotonic()
                    await self._patience.call(self._storage.sweep)
                while claim := await self._patience.call(partial(self._storage.claim, ending=True)):
                    await self._work(claim)
            except NotReady:
                return
            except Exception:
                log.exception("batches: the care for the storage failed, and is tried again later")
            await self._patience.pause(self._config.care_s)

    async def _show(self) -> None:
        """Set the gauges to what is true now."""
        figures = await self._patience.call(self._storage.figures)
        metrics, now = self._metrics, self._config.job.now()
        for status in _STATUSES:
            metrics.batch_jobs.labels(status).set(figures.batches.get(status, 0))
        oldest_at = figures.oldest_at
        metrics.batch_oldest_seconds.set(0 if oldest_at is None else max(0.0, now - oldest_at))
        metrics.batch_next_expiry.set(figures.next_expiry_at or 0)
        metrics.batch_stored_bytes.set(figures.stored_bytes)
