"""What a long step says of itself: sentences, and bars on a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Reporter(Protocol):
    """Takes the sentences and the progress of a long step, such as a download or a build."""

    def say(self, sentence: str) -> None:
        """Report one sentence."""
        ...

    def bar(
        self, what: str, total: int = 0, unit: str = "B"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Report the progress of one step while the context is open.

        Args:
            what: the step, in a few words.
            total: units of the whole step; 0 if that number is unknown.
            unit: `B` for bytes, or the name of the items that are counted.

        Returns:
            A context manager; its value takes the number of units done since the last call.
        """
        ...


class TerminalReporter:
    """Writes sentences to standard error, and draws bars there if it is a terminal."""

    def say(self, sentence: str) -> None:
        """Write one line to standard error."""
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - this is what reports are for

    @contextmanager
    def bar(
        self, what: str, total: int = 0, unit: str = "B"
    ) -> Generator[Callable[[int], None], None, None]:
        """Draw a bar; a bar of bytes is erased at its end, a count of items stays."""
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        from tqdm import tqdm

        counts_bytes = unit == "B"
        size = shutil.get_terminal_size()  # tqdm hides its bar where a pty reports 0 rows
        with tqdm(
            total=total or None,
            ncols=size.columns,
            nrows=size.lines,
            desc=what,
            unit=unit,
            unit_scale=counts_bytes,
            unit_divisor=1024 if counts_bytes else 1000,
            leave=not counts_bytes,
        ) as shown:
            yield lambda n_units: (shown.update(n_units), None)[1]


class SilentReporter:
    """Drops everything."""

    def say(self, sentence: str) -> None:
        """Drop the sentence."""

    def bar(
        self,
        what: str,  # noqa: ARG002 - named by the protocol
        total: int = 0,  # noqa: ARG002
        unit: str = "B",  # noqa: ARG002
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Draw nothing."""
        return nullcontext(lambda _: None)


SILENT = SilentReporter()
"""The reporter for callers that want no reports."""
