"""What a long step says of itself: sentences, and bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from matryo.core.terminal import can_draw


class Reporter(Protocol):
    """Takes the sentences and the progress of a long step, such as a download or a build."""

    def say(self, sentence: str) -> None:
        """Report one sentence."""
        ...

    def bar(
        self, what: str, total: int = 0, unit: str = "B", *, done: int = 0
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Report the progress of one step while the context is open.

        Args:
            what: the step, in a few words.
            total: units of the whole step; 0 if that number is unknown.
            unit: `B` for bytes, or the name of one of the items that are counted.
            done: units that were done before.

        Returns:
            A context manager; its value takes the number of units done since the last call.
        """
        ...

    def step(self, what: str) -> AbstractContextManager[None]:
        """Report that a step goes on, of which nothing is counted, while the context is open."""
        ...


class TerminalReporter:
    """Writes sentences to standard error, and draws there if it is a terminal."""

    def say(self, sentence: str) -> None:
        """Write one line to standard error; above the bars, if there are any."""
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - this is what reports are for

    @contextmanager
    def bar(
        self, what: str, total: int = 0, unit: str = "B", *, done: int = 0
    ) -> Generator[Callable[[int], None], None, None]:
        """Draw a bar; a bar of bytes is erased at its end, a count of items stays."""
        if not can_draw(sys.stderr):
            yield lambda _: None
            return
        from matryo.core.drawing import bar

        with bar(what, total or None, unit, stays=unit != "B", done=done) as shown:
            yield shown.advance

    @contextmanager
    def step(self, what: str) -> Generator[None, None, None]:
        """Name the step, and show the seconds; nothing of it stays."""
        if not can_draw(sys.stderr):
            yield
            return
        from matryo.core.drawing import step

        with step(what):
            yield


class SilentReporter:
    """Drops everything."""

    def say(self, sentence: str) -> None:
        """Drop the sentence."""

    def bar(
        self,
        what: str,  # noqa: ARG002 - named by the protocol
        total: int = 0,  # noqa: ARG002
        unit: str = "B",  # noqa: ARG002
        *,
        done: int = 0,  # noqa: ARG002
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Draw nothing."""
        return nullcontext(lambda _: None)

    def step(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002 - named by the protocol
        """Draw nothing."""
        return nullcontext()


SILENT = SilentReporter()
"""The reporter for callers that want no reports."""


class Together:
    """A reporter whose bars of bytes move one more bar, that of all of them.

    Args:
        reporter: takes everything.
        advance: takes the bytes of every bar. Those of a bar that ends with an error are taken
            back, because another try counts them again.
    """

    def __init__(self, reporter: Reporter, advance: Callable[[int], None]) -> None:
        self.say, self.step = reporter.say, reporter.step
        self._reporter, self._advance = reporter, advance

    @contextmanager
    def bar(
        self, what: str, total: int = 0, unit: str = "B", *, done: int = 0
    ) -> Generator[Callable[[int], None], None, None]:
        """Report the progress of one step, and of all."""
        n_done = done
        self._advance(done)
        with self._reporter.bar(what, total, unit, done=done) as own:

            def advance(n_units: int) -> None:
                nonlocal n_done
                n_done += n_units
                own(n_units)
                self._advance(n_units)

            try:
                yield advance
            except BaseException:
                self._advance(-n_done)
                raise
