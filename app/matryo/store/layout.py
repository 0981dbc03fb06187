"""The store: where checkpoints and artefacts lie, and how they get there whole.

    <home>/checkpoints/<id>/<checkpoint key>/         a complete, verified checkpoint
    <home>/checkpoints/<id>/<checkpoint key>.part/    one being fetched; resumed by the next pull
    <home>/artifacts/<id>/<precision>/<key>/          a complete artefact
    <home>/artifacts/<id>/<precision>/current         the key to serve
    <home>/encodings/                                 vocabularies of token arrays
    <home>/locks/                                     one lock for each id

A folder gets its final name by one rename when everything in it is complete, so whatever
has a final name is whole. Not covered: a disk that loses writes it acknowledged; the
hashes taken at load find that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from matryo.store.files import room_for


class Store:
    """Paths below one home folder.

    Args:
        home: the folder; made on first write.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    def checkpoint(self, model_id: str, key: str) -> Path:
        """Folder of a complete checkpoint; may not exist."""
        return self.home / "checkpoints" / model_id / key

    def artifacts(self, model_id: str, precision: str) -> Path:
        """Folder of the artefacts of a model in one precision; may not exist."""
        return self.home / "artifacts" / model_id / precision

    @property
    def encodings(self) -> Path:
        """Folder of vocabularies that callers may use in place of text; may not exist."""
        return self.home / "encodings"

    @contextlib.contextmanager
    def lock(
        self, name: str, *, waiting: Callable[[], None] | None = None
    ) -> Generator[None, None, None]:
        """Hold the lock `name` against every process on this store; freed if we are killed.

        Args:
            name: a model id; the operations on one model exclude each other.
            waiting: called once if another process holds it now.
        """
        from filelock import FileLock, Timeout

        folder = self.home / "locks"
        with room_for(self.home):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting:
                waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
