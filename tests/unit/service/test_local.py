"""`LocalService`: a service for callers without an event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from typing import Any, Self, cast

import pytest

from matryo.service import LocalService, Options, Texts


class StandIn:
    """A service that notes on which thread its coroutines are made, and answers as it is told."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.begun = threading.Event()
        self.left = threading.Event()
        self.error: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def embed(self, options: Options, texts: Texts) -> Any:
        """A coroutine; `texts.strings` says of what kind."""
        self.threads.append(threading.current_thread().name)
        return self._embed(texts.strings[0])

    async def _embed(self, text: str) -> str:
        if self.error:
            raise self.error
        if text == "wait":
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        return text


def local(service: StandIn) -> LocalService:
    """A local service of a stand-in."""
    return LocalService(lambda: cast("Any", service))


def test_coroutines_are_made_on_the_loop() -> None:
    """A caller that a signal interrupts leaves no coroutine behind that nobody awaits."""
    service = StandIn()
    with local(service) as ours:
        assert ours.embed(Options(), Texts(["a"])) == "a"
    assert service.threads == ["matryo-service"]


def test_errors() -> None:
    """What the service raises is raised to the caller."""
    service = StandIn()
    service.error = ValueError("told")
    with local(service) as ours, pytest.raises(ValueError, match="told"):
        ours.embed(Options(), Texts(["a"]))


def test_a_stream_that_is_left_cancels_what_runs() -> None:
    """The request after the one that was read is given up with the stream."""
    service = StandIn()
    with local(service) as ours:
        answers: Any = ours.embed_windows(Options(), (Texts([text]) for text in ("a", "wait")))
        assert next(answers) == "a"
        assert service.begun.wait(10)
        answers.close()
        assert service.left.wait(10)


def test_a_task_that_is_cancelled_ends_the_wait() -> None:
    """A caller whose task somebody cancels on the loop gets an error, and does not hang."""
    service = StandIn()
    service.error = asyncio.CancelledError()
    with local(service) as ours, pytest.raises(CancelledError):
        ours.embed(Options(), Texts(["a"]))
