"""The threads that parse, decode, tokenise and encode, and the order in which they do so.

A request works in pieces of a few milliseconds, one piece at a time. Between two pieces other
requests get a turn, in the order of `turns`. One thread never takes a long piece.
All state belongs to the event loop; a thread sees only the piece that it works on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from matryo.core.errors import Abandoned, Overloaded
from matryo.core.metrics import Metrics
from matryo.scheduler import ANYONE, Tenant
from matryo.service.turns import Piece, Turns

T = TypeVar("T")

_MIN_THREADS = 2  # one of them for pieces that are not long
_MEASURED = 4096  # characters of a piece that is long enough to measure the speed with
_WEIGHT = 0.2  # of a new measurement of the speed
_FIRST_CHARS_PER_S = 1e6  # of one thread, until the first measurement


class TextPool:
    """Threads that take pieces of many requests in turn.

    Args:
        threads: number of threads; at least two are started.
        metrics: what is counted.
        max_wait_s: seconds that a text may have to wait to be tokenised; None for any time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        threads: int,
        metrics: Metrics,
        max_wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = max(threads, _MIN_THREADS)
        self._metrics = metrics
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="matryo-text")
        self._turns = Turns()
        self._n_running = self._n_long = self._n_arrived = 0
        self._chars_per_s = _FIRST_CHARS_PER_S
        self._closed = False
        self._jobs: set[Job] = set()

    def admit(self, n_chars: int, patience_s: float | None = None, tenant: Tenant = ANYONE) -> Job:
        """A job of so many characters to tokenise, refused if it would have to wait too long.

        Args:
            n_chars: of the whole request.
            patience_s: seconds that the caller waits for an answer; None if unknown.
            tenant: whose texts they are.

        Raises:
            Overloaded: the texts that go first take longer than the bound, or than the caller
                waits.
        """
        bounds = [seconds for seconds in (self._max_wait_s, patience_s) if seconds is not None]
        chars_per_s = self._chars_per_s * self._threads
        limit = int(min(bounds) * chars_per_s) if bounds else 0
        used = self._ahead(tenant, n_chars)
        if bounds and used > limit:
            self._metrics.rejections.labels("wait").inc()
            raise Overloaded(
                resource="characters to tokenise",
                requested=n_chars,
                used=used,
                limit=limit,
                retry_after_s=(used - limit) / chars_per_s,
                reason="wait",
            )
        return self.job(n_chars, tenant)

    def _ahead(self, tenant: Tenant, n_chars: int) -> int:
        """Characters that go before so many of a tenant."""
        left: dict[Tenant, int] = {}
        for job in self._jobs:
            if job.tenant != tenant or job.left <= n_chars:
                left[job.tenant] = left.get(job.tenant, 0) + job.left
        own = left.pop(tenant, 0)
        turn = (own + n_chars) / tenant.weight
        return own + sum(min(n, int(turn * other.weight)) for other, n in left.items())

    def job(self, n_chars: int, tenant: Tenant = ANYONE) -> Job:
        """A job that is never refused, such as encoding.

        Args:
            n_chars: characters that take as long to tokenise as the job takes.
            tenant: whose job it is.
        """
        job = Job(self, n_chars, tenant)
        self._jobs.add(job)
        return job

    def end(self, job: Job) -> None:
        """Forget a job."""
        self._jobs.discard(job)

    async def close(self) -> None:
        """Fail all pieces that wait, and return when no thread works any more."""
        self._closed = True
        for piece in self._turns.drain():
            if not piece.done.done():
                piece.done.set_exception(Abandoned())
        # A piece cannot be interrupted, and waiting for its end must not block the loop.
        await asyncio.to_thread(self._executor.shutdown)

    # --- for jobs

    async def work(
        self, work: Callable[[], T], left: int, tenant: Tenant, *, is_long: bool
    ) -> tuple[T, float]:
        """The result of `work` on a thread, and the seconds it took."""
        if self._closed:
            raise Abandoned
        self._n_arrived += 1
        loop = asyncio.get_running_loop()
        piece = Piece(
            work,
            left,
            self._n_arrived,
            self._clock(),
            is_long,
            tenant,
            loop.create_future(),
        )
        self._turns.add(piece)
        self._start()
        try:
            result, error, spent_s = await piece.done
        finally:
            self._turns.remove(piece)
        if error is None:
            return result, spent_s
        try:
            raise error
        finally:
            del error  # else the error and this frame would keep each other, and all they refer to

    def measure(self, n_chars: int, spent_s: float) -> None:
        """Learn from characters that were tokenised in so many seconds of a thread."""
        if n_chars >= _MEASURED and spent_s > 0:
            self._chars_per_s += _WEIGHT * (n_chars / spent_s - self._chars_per_s)

    def _start(self) -> None:
        """Give pieces to threads that are free."""
        loop = asyncio.get_running_loop()
        while self._n_running < self._threads and not self._closed:
            piece = self._turns.first(self._clock(), long_allowed=self._n_long < self._threads - 1)
            if piece is None:
                return
            self._turns.remove(piece)
            self._n_running += 1
            self._n_long += piece.is_long
            self._executor.submit(_work_on, piece, partial(loop.call_soon_threadsafe, self._ended))

    def _ended(
        self,
        piece: Piece,
        result: Any,  # noqa: ANN401
        error: BaseException | None,
        spent_s: float,
    ) -> None:
        self._n_running -= 1
        self._n_long -= piece.is_long
        self._turns.charge(piece.tenant, spent_s)
        if not piece.done.done():  # else its caller is gone
            piece.done.set_result((result, error, spent_s))
        self._start()


def _work_on(piece: Piece, report: Callable[..., object]) -> None:
    """Do a piece of work on a thread, and report how it ended.

    Nothing keeps the work afterwards: it may refer to a whole body, or to all vectors of an answer.
    """
    work, piece.work = piece.work, _nothing
    started = time.perf_counter()
    try:
        result, error = work(), None
    except BaseException as exc:
        result, error = None, exc
    del work
    with contextlib.suppress(RuntimeError):  # the loop was closed
        report(piece, result, error, time.perf_counter() - started)


def _nothing() -> None:
    """Stand in for work that is done."""


class Job:
    """What one request does on the threads; leave its `with` block to give up what is left.

    Attributes:
        left: characters that are not done.
        tenant: whose job it is.
    """

    def __init__(self, pool: TextPool, left: int, tenant: Tenant) -> None:
        self._pool = pool
        self._spent_s = 0.0
        self.left = left
        self.tenant = tenant

    async def run(self, work: Callable[[], T], *, is_long: bool = False) -> T:
        """The result of a piece of work. Cancelling the call drops the piece if it waits.

        Args:
            work: takes about 10 ms, or is long.
            is_long: whether the work may take longer. One thread takes no such work.

        Raises:
            NotReady: the pool was closed first.
        """
        result, spent_s = await self._pool.work(work, self.left, self.tenant, is_long=is_long)
        self._spent_s += spent_s
        return result

    def advance(self, n_chars: int) -> None:
        """Count characters as tokenised by the runs since the last call."""
        n_chars = min(n_chars, self.left)
        self.left -= n_chars
        self._pool.measure(n_chars, self._spent_s)
        self._spent_s = 0.0

    def __enter__(self) -> Self:
        """Return the job itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give up what is left."""
        self._pool.end(self)
