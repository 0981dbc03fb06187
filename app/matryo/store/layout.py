"""The store: the paths of checkpoints, artefacts and vocabularies, and the locks on them.

    <home>/checkpoints/<id>/<checkpoint key>/         a complete, verified checkpoint
    <home>/checkpoints/<id>/<checkpoint key>.part/    one being fetched; resumed by the next pull
    <home>/artifacts/<id>/<precision>/<key>/          a complete artefact
    <home>/artifacts/<id>/<precision>/current         the key to serve, and what it came from
    <home>/artifacts/<id>/<precision>+native/         likewise, with the operators of matryo-native
    <home>/models/<id>/                               a model that was derived from a checkpoint
    <home>/fetched/                                   files of repositories before they get an id
    <home>/pins/<id>.json                             hashes that a first pull found
    <home>/encodings/                                 vocabularies of token arrays
    <home>/locks/                                     one lock for each id

Whatever has a final name is whole; `matryo.store.files` says how. Not covered: a disk that
loses what it said was synced. The hashes taken when a model is loaded find that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from matryo.core.choices import NATIVE_PRECISIONS, Precision
from matryo.core.native import uses_native
from matryo.core.progress import Reporter
from matryo.core.settings import Settings
from matryo.store.bundle import running
from matryo.store.files import check_home, make_folder, room_for, tidy_folder

MODELS_LOCK = "derive"
"""The lock of whoever derives a model, and so chooses an id."""


class Store:
    """Paths below one home folder.

    Args:
        home: the folder; made on first write.
        native: whether artefacts use the operators of matryo-native, in the precisions that it
            has operators for.

    Raises:
        StoreUnwritable: `home` is a file or a link to nothing, so that no folder can be made.
    """

    def __init__(self, home: Path, *, native: bool = False) -> None:
        self.home = home
        self._native = native
        check_home(home)

    def checkpoint(self, model_id: str, key: str) -> Path:
        """Folder of a complete checkpoint; may not exist."""
        return self.home / "checkpoints" / model_id / key

    def native(self, precision: Precision) -> bool:
        """Whether artefacts in a precision use the operators of matryo-native."""
        return self._native and precision in NATIVE_PRECISIONS

    def artifacts(self, model_id: str, precision: Precision) -> Path:
        """Folder of the artefacts of a model in one precision; may not exist."""
        suffix = "+native" if self.native(precision) else ""
        return self.home / "artifacts" / model_id / f"{precision}{suffix}"

    def model_folders(self, model_id: str) -> tuple[Path, Path, Path]:
        """The folders of a model's checkpoints, its artefacts and its derived manifest."""
        home = self.home
        return (
            home / "checkpoints" / model_id,
            home / "artifacts" / model_id,
            home / "models" / model_id,
        )

    @property
    def encodings(self) -> Path:
        """Folder of vocabularies that callers may use in place of text; may not exist."""
        return self.home / "encodings"

    @contextlib.contextmanager
    def lock(
        self, name: str, *, waiting: Callable[[], None] | None = None
    ) -> Generator[None, None, None]:
        """Hold the lock `name` against every process on this store.

        The operating system frees the lock of a process that is killed. What such a process
        left half done is removed or finished before the context opens.

        Args:
            name: a model id; the operations on one model exclude each other.
            waiting: called once if another process holds the lock now.

        Raises:
            StoreFull: the disk is full.
            StoreUnwritable: this user may not write to the store.
        """
        from filelock import FileLock, Timeout

        folder = self.home / "locks"
        with room_for(self.home):
            make_folder(folder)
        lock = FileLock(folder / f"{name}.lock")
        with room_for(self.home):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting:
                    waiting()
                lock.acquire()
        try:
            with room_for(self.home):
                for guarded in self._guarded(name):
                    tidy_folder(guarded)
            yield
        finally:
            lock.release()

    def lock_reporting(
        self, name: str, reporter: Reporter
    ) -> contextlib.AbstractContextManager[None]:
        """The lock of this name; see `lock`. Waiting for another process is reported."""
        sentence = f"{name}: another process is pulling or building it; waiting for that to end"
        if name == MODELS_LOCK:
            sentence = "another process is deriving a model; waiting for that to end"
        return self.lock(name, waiting=lambda: reporter.say(sentence))

    def _guarded(self, model_id: str) -> list[Path]:
        """The folders in which only the holder of a model's lock writes."""
        precisions = list((self.home / "artifacts" / model_id).glob("*"))
        artifacts = [path for folder in precisions for path in folder.glob("*") if path.is_dir()]
        # Outer folders last: a packed graph of an artefact that gets its name back counts too.
        return [*artifacts, *precisions, self.home / "checkpoints" / model_id]


def open_store(settings: Settings) -> Store:
    """The store of `settings`, with the artefacts of the operators that `settings` choose.

    A bundle has artefacts of ONNX Runtime's own operators alone.

    Raises:
        SettingsInvalid: the operators of matryo-native are chosen, and cannot be used.
        StoreUnwritable: see `Store`.
    """
    return Store(settings.home, native=not running() and uses_native(settings.kernels))
