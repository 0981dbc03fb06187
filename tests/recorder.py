"""Reporters that keep what they are told."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from matryo.core.progress import SilentReporter


class Recorder(SilentReporter):
    """Keeps every sentence, and draws no bars.

    Attributes:
        said: the sentences in order.
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        """Keep one sentence."""
        self.said.append(sentence)


class Counter(SilentReporter):
    """Adds up each bar.

    Attributes:
        counted: units by the name of the bar; of a bar that came again, those of the last.
    """

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}

    @contextmanager
    def bar(
        self, what: str, total: int = 0, unit: str = "B", *, done: int = 0
    ) -> Generator[Callable[[int], None], None, None]:
        """Count what is done."""
        self.counted[what] = done

        def advance(n_units: int) -> None:
            self.counted[what] += n_units

        yield advance
