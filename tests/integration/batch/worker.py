"""A process that does what a replica does, until it is killed: `python -m … BATCHES`.

Each line of its output says what was just done, so that a test can choose when to kill.
"""

from __future__ import annotations

import os
import sys

from matryo.batch.objects import LeaseLost, WindowResult
from matryo.batch.sql.storage import SqlStorage
from matryo.batch.storage import open_storage
from matryo.core.environment import load_settings
from matryo.core.errors import StorageUnavailable

N_LINES = 40
INPUT = b"".join(b"%d\n" % number for number in range(N_LINES))


def answers(lines: list[bytes]) -> tuple[bytes, bytes]:
    """Results of even lines, errors of odd ones."""
    output = b"".join(line for line in lines if int(line) % 2 == 0)
    return output, b"".join(line for line in lines if int(line) % 2)


def say(word: str) -> None:
    """Write a line that the test reads at once."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def work(storage: SqlStorage) -> None:
    """Claim batches and do them, window by window, for as long as there are any."""
    while storage.figures().oldest_at is not None:
        claim = storage.claim()
        if claim is None:
            continue
        say("claimed")
        try:
            claim.begin(N_LINES, "mini")
            while claim.progress.n_lines < N_LINES:
                rest = b"".join(storage.read(claim.input, claim.progress.n_bytes))
                lines = rest.splitlines(keepends=True)[:2]
                output, errors = answers(lines)
                n_bytes = sum(map(len, lines))
                claim.commit(WindowResult(output, errors, len(lines), n_bytes, 1, 1, len(lines)))
                say("committed")
            claim.finish("completed")
            storage.sweep()
        except (LeaseLost, StorageUnavailable) as exc:
            say(type(exc).__name__)


if __name__ == "__main__":
    os.environ.setdefault("MATRYO_BATCH", "true")
    opened = open_storage(load_settings(None))
    assert isinstance(opened, SqlStorage)
    work(opened)
    say("done")
