"""A reporter that keeps what it is told."""

from __future__ import annotations

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
