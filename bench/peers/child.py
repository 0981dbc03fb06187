"""An engine in a process of its own, from the side of the benchmark."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).parents[2]


class Child:
    """A process that serves one engine (see `bench.peers.protocol`); a context manager.

    Args:
        name: of the engine, for tables.
        command: that starts the process.
        vocabulary: token ids are below this number.
        log: file that standard error is appended to.
        clock: `wall` or `cpu`; see `bench.peers.protocol.rate`.

    Attributes:
        about: what the engine says of itself.
        settings: names of its settings.

    Raises:
        SystemExit: the process ended instead of answering; its log says why.
    """

    def __init__(
        self, name: str, command: Sequence[str], vocabulary: int, log: Path, clock: str = "wall"
    ) -> None:
        self.name = name
        self._vocabulary, self._log, self._clock = vocabulary, log, clock
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - the command is the operator's own
                command,
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        facts = self._answer()
        self.about: str = facts["about"]
        self.settings: list[str] = facts["settings"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> int:
        """End the process; returns its exit code."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()

    def rate(self, setting: str, shape: Sequence[int], seconds: float) -> float:
        """Tokens a second, by the clock, with a setting at a shape."""
        given = {"shape": list(shape), "vocabulary": self._vocabulary, "seconds": seconds}
        return float(self._ask(setting=setting, **given)[self._clock])

    def embed(
        self, setting: str, texts: Path, batches: Sequence[Sequence[int]], output: Path
    ) -> None:
        """Write vectors, one row for each text, in the order of the batches.

        Args:
            setting: one of the engine's settings.
            texts: JSON file with a list of lists of token ids.
            batches: indexes of the texts of each batch.
            output: the `.npy` file to write.
        """
        rows = [list(batch) for batch in batches]
        self._ask(setting=setting, texts=str(texts), batches=rows, output=str(output))

    def _ask(self, **request: object) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._end()}. Its log is {self._log}")
        return json.loads(line)
