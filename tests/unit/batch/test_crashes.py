"""SIGKILL before every step on the disk and around every commit: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from matryo.batch.sql import uploads
from tests.crashes import count_steps, die_at
from tests.storages import (
    START,
    Place,
    add_batch,
    content,
    folder_place,
    memory_folder,
    results,
    window,
)

_INPUT = b"".join(b"%d\n" % number for number in range(6))
_LEASE_S = 60


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of eight bytes, so that the input has two."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", 8)


def _announce_commits(place: Place, root: Path) -> None:
    """Announce each commit of the database, before and after, as a step on the disk."""
    engine = place.opened[-1].engine
    real = engine.dialect.do_commit

    def commit(connection: Any) -> None:
        sys.audit("os.commit", str(root))
        real(connection)
        sys.audit("os.committed", str(root))

    engine.dialect.do_commit = commit  # type: ignore[method-assign]


def work(root: Path, attempt: int) -> None:
    """What a client and a runner do: go on wherever the last attempt was killed."""
    place = folder_place(root)
    place.clock.now = START + attempt * (_LEASE_S + 1)
    storage = place.storage()
    _announce_commits(place, root)
    files = storage.files("ann", purpose="batch").items
    if not files:
        upload = storage.add_file("ann", "in")
        upload.write(_INPUT)
        files = (upload.commit(),)
    if not storage.batches("ann").items:
        add_batch(storage, files[0])
    while claim := storage.claim():
        claim.begin(6, "mini")
        while claim.progress.n_lines < 6:
            rest = b"".join(storage.read(claim.input, claim.progress.n_bytes))
            lines = rest.splitlines(keepends=True)[:2]
            good, bad = lines[0], b"!" + lines[1]
            claim.commit(window(good, bad, 2))
        claim.finish("completed")
    storage.sweep()
    place.close()


def _killed(run: Callable[[], object]) -> bool:
    """Run in a child; return whether it was killed. A child that raises fails the test."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def check(root: Path, attempt: int) -> None:
    """Check that every line was done once, and that nothing else is left."""
    place = folder_place(root)
    place.clock.now = START + attempt * (_LEASE_S + 1) + 3601
    storage = place.storage()
    (batch,) = storage.batches("ann").items
    assert batch.status == "completed"
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (6, 3, 3)
    assert results(storage, batch) == [b"0\n2\n4\n", b"!1\n!3\n!5\n"]
    (file,) = storage.files("ann", purpose="batch").items
    assert content(storage, storage.file("ann", file.id)) == _INPUT
    storage.sweep()
    assert place.stored() == place.known()
    assert place.row_counts() == (3, 1)
    place.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where nothing has to be synced."""
    with memory_folder() as made:
        yield made


@pytest.fixture
def n_steps(folder: Path) -> int:
    """Steps of the whole work."""
    root = folder / "count"
    number = count_steps(root, partial(work, root, 0))
    check(root, 0)
    return number


@pytest.mark.parametrize("part", range(4))
def test_killed_once_at_every_step(folder: Path, n_steps: int, part: int) -> None:
    """Wherever one kill falls, the next process completes the work with every line once."""
    assert n_steps > 60
    for step in range(part, n_steps, 4):
        root = folder / str(step)
        assert _killed(partial(die_at, step, root, partial(work, root, 0)))
        work(root, 1)
        check(root, 1)


@pytest.mark.parametrize("begin", [0, 3])
def test_killed_again_and_again(folder: Path, begin: int) -> None:
    """Kills that each attempt meets one step later delay the work, and change nothing else."""
    root = folder / "again"
    for attempt in itertools.count():
        step = begin + attempt
        if not _killed(partial(die_at, step, root, partial(work, root, attempt))):
            assert attempt > 5
            check(root, attempt)
            break
