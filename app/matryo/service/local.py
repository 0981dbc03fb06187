"""The service for synchronous callers of the same process: a thread with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from matryo.service.request import Answer, Options, Texts
from matryo.service.service import Service

if TYPE_CHECKING:
    from matryo.service.canary import Canary

T = TypeVar("T")

_WINDOWS_AHEAD = 2  # one runs while the next is tokenised


class LocalService:
    """Runs a service until the end of a `with` block; calls may come from any thread.

    Args:
        make_service: makes the service to run; called here, so that its errors are raised here.
    """

    def __init__(self, make_service: Callable[[], Service]) -> None:
        self.service = make_service()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="matryo-service", daemon=True
        )

    def __enter__(self) -> Self:
        """Start the service.

        Raises:
            EngineError: a model cannot run.
        """
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.service.__aenter__(), self._loop).result()
        except BaseException:
            self._stop_loop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the service."""
        self.close()

    def close(self) -> None:
        """Stop the service; calls that still wait fail with `NotReady`. Closing twice is fine."""
        if self._loop.is_closed():
            return
        leaving = self.service.__aexit__(None, None, None)
        try:
            asyncio.run_coroutine_threadsafe(leaving, self._loop).result()
        finally:
            self._stop_loop()

    def _stop_loop(self) -> None:
        waiting = self._loop.shutdown_default_executor()
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def embed(self, options: Options, texts: Texts) -> Answer:
        """The answer of one request; raises what `Service.embed` raises."""
        return self._submit(options, texts).result()

    def embed_windows(self, options: Options, windows: Iterable[Texts]) -> Iterator[Answer]:
        """The answer of each window of a long stream of texts, in order; see `embed_requests`."""
        return self.embed_requests((options, texts) for texts in windows)

    def embed_requests(self, requests: Iterable[tuple[Options, Texts]]) -> Iterator[Answer]:
        """The answer of each request of a long stream, in order.

        A few requests are under way at a time, so that the workers stay busy.

        Raises:
            MatryoError: what `Service.embed` raises for a request. The requests before it have
                been answered.
        """
        under_way: deque[Future[Answer]] = deque()
        try:
            for options, texts in requests:
                under_way.append(self._submit(options, texts))
                if len(under_way) >= _WINDOWS_AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def canary(self, model: str | None = None) -> Canary:
        """The canary of a model, by its name; None for the default. See `Service.canary`.

        Raises:
            UnknownModel: the model is not loaded.
            InferenceFailed: a run failed.
        """
        engine, _ = self.service.directory.resolve(model)
        return self.submit(lambda: self.service.canary(engine)).result()

    def _submit(self, options: Options, texts: Texts) -> Future[Answer]:
        return self.submit(lambda: self.service.embed(options, texts))

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """The result to come of a coroutine, which is made on the loop's thread.

        A signal's exception may end this thread's work at any step, and must not leave a coroutine
        behind that nobody awaits.
        """
        future: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._start, future, work)
        return future

    def _start(self, future: Future[T], work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        task = self._loop.create_task(work())
        task.add_done_callback(partial(_settle, future))
        future.add_done_callback(partial(self._cancel, task))

    def _cancel(self, task: asyncio.Task[T], future: Future[T]) -> None:
        if future.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the task is over
                self._loop.call_soon_threadsafe(task.cancel)


def _settle(future: Future[T], task: asyncio.Task[T]) -> None:
    """Give a future its task's outcome, unless its caller has cancelled the future."""
    exc = CancelledError() if task.cancelled() else task.exception()
    if not future.set_running_or_notify_cancel():
        return
    if exc:
        future.set_exception(exc)
    else:
        future.set_result(task.result())
