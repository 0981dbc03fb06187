"""A crash at any step leaves what was there before, or what was asked for; never anything else."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from matryo.build.provision import build_model, ensure_model, pull_encoding, pull_model
from matryo.catalog.manifest import Manifest
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ArtifactMissing
from matryo.core.progress import SILENT
from matryo.engine.onnx.prepacked import find_prepacked
from matryo.engine.packing import pack_model
from matryo.store import files
from matryo.store.artifact import Artifact, find_artifact, unverified_origin
from matryo.store.encodings import TABLE_FILE, find_table
from matryo.store.files import find_folder, replace_folder, tidy_folder, write_atomically
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model, random_tensors, save_tensors
from tests.crashes import Crash, count_steps, crash_at

HIDDEN_FILES = ("*.tmp-*", "*.old", "*.part")


@dataclass(frozen=True)
class Case:
    """A tiny model, and weights of one's own for it.

    Attributes:
        root: everything lies below it; the store is `root/home`.
        own: a checkpoint that no manifest pins.
    """

    root: Path
    model: TinyModel
    manifest: Manifest
    own: Path

    @property
    def store(self) -> Store:
        """The store of this case."""
        return Store(self.root / "home")

    def build(self, checkpoint: Path) -> Artifact:
        """Build from a folder, whatever its hashes are."""
        return build_model(
            self.store,
            self.manifest,
            "fp32",
            checkpoint,
            allow_unverified=True,
            reporter=SILENT,
        )

    def pull(self) -> Path:
        """Pull the published checkpoint."""
        return pull_model(self.store, self.manifest, str(self.model.checkpoint), SILENT)

    def ensure(self) -> Artifact:
        """What `matryo serve` does, and a look at every file of the result."""
        artifact = ensure_model(self.store, self.manifest, "fp32", SILENT)
        artifact.check_files()
        return artifact


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case with an empty store."""
    model = make_model(tmp_path, "bert")
    own = tmp_path / "own"
    shutil.copytree(model.checkpoint, own)
    save_tensors(random_tensors(model.config, seed=1), own / "model.safetensors")
    return Case(tmp_path, model, read_manifest(model.models / model.id), own)


def for_every_crash(case: Case, work: Callable[[], object], check: Callable[[], None]) -> int:
    """Do the work from one state of the store with a crash at each of its steps in turn.

    After each crash `check` looks at the store. Afterwards the work is done to its end, and
    nothing unfinished is left.

    Returns:
        The number of steps.
    """
    home, before = case.store.home, case.root / "before"
    home.mkdir(exist_ok=True)
    shutil.copytree(home, before)

    def restore() -> None:
        shutil.rmtree(home)
        shutil.copytree(before, home)

    n_steps = count_steps(home, work)
    assert leftovers(home) == []
    for step in range(n_steps):
        restore()
        with pytest.raises(Crash):
            crash_at(step, home, work)
        check()
        work()
        assert leftovers(home) == [], step
    return n_steps


def leftovers(home: Path) -> list[Path]:
    """Files and folders without a final name."""
    return [path for pattern in HIDDEN_FILES for path in home.rglob(pattern)]


def served(case: Case) -> str | None:
    """Hash of the weights that a server finds, every file of them looked at; None if none."""
    try:
        artifact = find_artifact(case.store, case.manifest, "fp32")
    except ArtifactMissing:
        return None
    artifact.check_files()
    return artifact.record.checkpoint_sha256


@dataclass(frozen=True)
class Weights:
    """Hashes of the two checkpoints of a case."""

    published: str
    own: str


def hashes(case: Case) -> Weights:
    """Both hashes."""
    return Weights(
        files.sha256_file(case.model.checkpoint / "model.safetensors"),
        files.sha256_file(case.own / "model.safetensors"),
    )


class TestBuild:
    """`matryo build`, over nothing, over itself and over other weights."""

    def test_first(self, case: Case) -> None:
        """Over nothing: nothing or the new artefact is found, and serving gets a whole one."""
        case.pull()
        weights = hashes(case)

        def check() -> None:
            assert served(case) in (None, weights.published)
            assert case.ensure().record.checkpoint_sha256 == weights.published

        assert for_every_crash(case, lambda: case.build(case.model.checkpoint), check) > 10

    def test_own_weights_again(self, case: Case) -> None:
        """Over a damaged artefact of one's own weights: never the published ones."""
        case.pull()
        artifact = case.build(case.own)
        (artifact.folder / "model.onnx.data").write_bytes(b"rubbish")
        weights = hashes(case)

        def check() -> None:
            assert unverified_origin(case.store, "tiny", "fp32") == case.own
            assert case.ensure().record.checkpoint_sha256 == weights.own

        for_every_crash(case, lambda: case.build(case.own), check)

    @pytest.mark.parametrize("own_first", [False, True])
    def test_other_weights(self, case: Case, own_first: bool) -> None:
        """From published weights to one's own, and back: the old ones or the new, and no gap."""
        case.pull()
        old, new = case.model.checkpoint, case.own
        old, new = (new, old) if own_first else (old, new)
        case.build(old)
        weights = hashes(case)

        def check() -> None:
            found = served(case)
            assert found in (weights.published, weights.own)
            origin = case.own if found == weights.own else None
            assert unverified_origin(case.store, "tiny", "fp32") == origin
            assert case.ensure().record.checkpoint_sha256 == found

        for_every_crash(case, lambda: case.build(new), check)

    def test_after_an_upgrade(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        """Old artefacts cannot serve; crashes while they are rebuilt never change the weights."""
        case.pull()
        case.build(case.own)
        monkeypatch.setattr("matryo.store.artifact.BUILDER_VERSION", 999)
        monkeypatch.setattr("matryo.build.build.BUILDER_VERSION", 999)
        weights = hashes(case)

        def check() -> None:
            assert served(case) in (None, weights.own)
            assert case.ensure().record.checkpoint_sha256 == weights.own

        for_every_crash(case, case.ensure, check)


class TestPull:
    """`matryo pull`, over nothing and over a damaged file."""

    def complete(self, case: Case) -> None:
        """The next pull gives the manifest's files."""
        folder = case.pull()
        assert sorted(path.name for path in folder.iterdir()) == sorted(case.manifest.files)
        for name, file in case.manifest.files.items():
            assert files.sha256_file(folder / name) == file.sha256

    def test_first(self, case: Case) -> None:
        """A checkpoint is not there, or whole."""
        final = case.store.checkpoint("tiny", case.manifest.checkpoint_key)

        def check() -> None:
            if final.exists():
                assert {path.name for path in final.iterdir()} == set(case.manifest.files)
            self.complete(case)

        for_every_crash(case, case.pull, check)

    def test_repair(self, case: Case) -> None:
        """The good files of a damaged checkpoint are there throughout."""
        final = case.pull()
        (final / "model.safetensors").write_bytes(b"rubbish")
        good = case.manifest.files["tokenizer.json"].sha256

        def check() -> None:
            assert files.sha256_file(find_folder(final) / "tokenizer.json") == good
            self.complete(case)

        for_every_crash(case, case.pull, check)


def test_pack(case: Case) -> None:
    """Packed weights are whole or not there, and the artefact serves throughout."""
    case.build(case.model.checkpoint)

    def pack() -> None:
        pack_model(case.store, case.manifest, "fp32", SILENT)

    def check() -> None:
        assert served(case) == hashes(case).published
        packed = find_prepacked(find_artifact(case.store, case.manifest, "fp32"))
        assert packed is None or packed.intact()

    for_every_crash(case, pack, check)


def test_encoding(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is not there, or whole."""
    source = find_table(case.store)
    assert source
    content = source.read_bytes()
    final = case.store.encodings / TABLE_FILE

    def check() -> None:
        assert not final.exists() or final.read_bytes() == content

    def pull() -> None:
        assert pull_encoding(case.store, str(source.parent), SILENT) == final

    for_every_crash(case, pull, check)


KILLED = """
import sys
from pathlib import Path
from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.progress import SILENT
from matryo.store.layout import Store
from tests.crashes import die_at

step, home, folder, checkpoint = int(sys.argv[1]), *map(Path, sys.argv[2:])
die_at(step, home, lambda: build_model(
    Store(home), read_manifest(folder), "fp32", checkpoint,
    allow_unverified=True, reporter=SILENT,
))
"""


@pytest.mark.parametrize("from_end", [1, 4, 8])
def test_kill(case: Case, from_end: int) -> None:
    """A build killed by the system near its end: the old weights or the new, and a clean store."""
    case.pull()
    case.build(case.own)
    spare = case.root / "spare"
    shutil.copytree(case.store.home, spare)
    n_steps = count_steps(case.store.home, lambda: case.build(case.model.checkpoint))
    shutil.rmtree(case.store.home)
    spare.rename(case.store.home)
    arguments = [n_steps - from_end, case.store.home, case.model.models / "tiny"]
    command = [sys.executable, "-c", KILLED, *map(str, arguments), str(case.model.checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    weights = hashes(case)
    found = served(case)
    assert found in (weights.own, weights.published)
    assert case.ensure().record.checkpoint_sha256 == found
    assert leftovers(case.store.home) == []


class TestFolders:
    """The steps of a replacement, one by one."""

    def folders(self, root: Path) -> tuple[Path, Path]:
        """An old folder with its final name, and a new one beside it."""
        final, new = root / "final", root / "new"
        for folder in (final, new):
            folder.mkdir()
            (folder / "content").write_text(folder.name)
        return new, final

    def test_readers_always_find_one(self, tmp_path: Path) -> None:
        """At every step there is a whole folder to read, and tidying leaves one and no more."""
        first = self.folders(tmp_path)
        for step in range(count_steps(tmp_path, lambda: replace_folder(*first))):
            root = tmp_path / f"{step}"
            root.mkdir()
            new, final = self.folders(root)
            with pytest.raises(Crash):
                crash_at(step, root, lambda new=new, final=final: replace_folder(new, final))
            found = (find_folder(final) / "content").read_text()
            tidy_folder(root)
            assert (final / "content").read_text() == found
            shutil.rmtree(new, ignore_errors=True)
            assert [path.name for path in root.iterdir()] == ["final"]

    def test_synced_before_it_has_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Contents reach the disk before the rename, the folder's entry after."""
        new, final = self.folders(tmp_path)
        events: list[str] = []
        monkeypatch.setattr(
            files, "_sync", lambda path: events.append(f"sync {path.relative_to(tmp_path)}")
        )
        rename, replace = Path.rename, Path.replace
        monkeypatch.setattr(
            Path, "rename", lambda path, to: (events.append(f"name {to.name}"), rename(path, to))
        )
        monkeypatch.setattr(
            Path, "replace", lambda path, to: (events.append(f"name {to.name}"), replace(path, to))
        )
        replace_folder(new, final)
        write_atomically(tmp_path / "current", "key")
        named = events.index("name final")
        assert events[:named] == ["sync new/content", "sync new", "name final.old"]
        assert events[named + 1] == "sync ."
        assert events[-3].startswith("sync current.tmp-")
        assert events[-2:] == ["name current", "sync ."]
