"""What a long run of `matryo embed` says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from matryo.commands.embedding.bar import progress_bar


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        """The seconds."""
        return self.now


@pytest.mark.parametrize(
    ("n_rows", "line"),
    [
        (10_000, "embedding: 1,600 of 10,000 texts, 10 texts/s, 120 tok/s, 14 min left"),
        (1_900, "embedding: 1,600 of 1,900 texts, 10 texts/s, 120 tok/s, 30 s left"),
        (1_000_000, "embedding: 1,600 of 1,000,000 texts, 10 texts/s, 120 tok/s, 27.7 h left"),
        (None, "embedding: 1,600 texts, 10 texts/s, 120 tok/s"),
    ],
)
def test_lines(capsys: Any, n_rows: int | None, line: str) -> None:
    """Without a terminal, a line a minute; rows of an earlier run do not count as speed."""
    clock = Clock()
    with progress_bar(n_rows, 1000, clock) as advance:
        clock.now = 59.0
        advance(300, 3600)
        assert capsys.readouterr().err == ""
        clock.now = 60.0
        advance(300, 3600)
        advance(0, 0)
    assert capsys.readouterr().err == f"{line}\n"
