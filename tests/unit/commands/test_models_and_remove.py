"""`matryo models` lists what there is, and `matryo remove` gives the disk back."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from matryo.build.provision import remove_model
from matryo.catalog.manifest import CheckpointFile
from matryo.catalog.pins import Pins, pins_path
from matryo.catalog.reading import read_manifest
from matryo.cli import main
from matryo.core.progress import SilentReporter
from matryo.engine.onnx.prepacked import prepack
from matryo.store.artifact import find_artifact
from matryo.store.derived import find_derived
from matryo.store.files import make_folder
from matryo.store.layout import MODELS_LOCK, Store
from matryo.store.pull.checkpoint import pull
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny
from tests.recorder import Recorder
from tests.standins import COMMIT


@dataclass(frozen=True)
class Home:
    """A store, and a folder of own models with one tiny model.

    Attributes:
        model: the tiny model, pulled and built in fp32.
        bare: folder of a checkpoint that says by itself what it is.
    """

    root: Path
    model: TinyModel
    bare: Path

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self.root / "home"

    @property
    def store(self) -> Store:
        """The store."""
        return Store(self.path)

    def __call__(self, *arguments: object) -> Result:
        """Run `matryo ARGUMENTS`."""
        env = {"MATRYO_HOME": str(self.path), "MATRYO_MODELS": str(self.model.models)}
        return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)

    def row(self, model_id: str) -> list[str]:
        """The words of a model's row of `matryo models`."""
        done = self("models")
        assert done.exit_code == 0, done.output
        (line,) = [line for line in done.stdout.splitlines() if line.split()[0] == model_id]
        return line.split()

    def left(self, model_id: str) -> list[Path]:
        """What the store still has under the model's name, locks apart."""
        found = self.path.rglob(f"{model_id}*")
        return [path for path in found if path.parent != self.path / "locks"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The store; nothing is derived yet."""
    model = make_model(tmp_path, "bert")
    bare = tmp_path / "my-tune"
    shutil.copytree(model.checkpoint, bare)
    (bare / "config.json").write_text(json.dumps(model.config))
    (bare / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    home = Home(tmp_path, model, bare)
    manifest = read_manifest(model.models / model.id)
    pull(home.store, manifest, str(model.checkpoint), SilentReporter())
    build_tiny(tmp_path, model)
    return home


class TestModels:
    """`matryo models`."""

    def test_a_shipped_model(self, home: Home) -> None:
        """A model that was never pulled: its kind, size and limit, and nothing on disk."""
        row = home.row("all-minilm-l6-v2")
        assert row == ["all-minilm-l6-v2", "shipped", "384", "512", "-", "-", "yes", "-"]

    def test_an_own_model(self, home: Home) -> None:
        """A model of MATRYO_MODELS that is pulled and built, and all that it takes on disk."""
        name, kind, size, limit, checkpoint, n_mb, unit, *rest = home.row("tiny")
        assert (name, kind, size, limit, checkpoint) == ("tiny", "own", "32", "64", "here")
        kinds = ("checkpoints", "artifacts")
        files = [path for k in kinds for path in (home.path / k).rglob("*") if path.is_file()]
        n_bytes = sum(path.stat().st_size for path in files)
        assert (n_mb, unit) == (f"{n_bytes / 1e6:,.0f}", "MB")
        assert rest[:2] == ["no", "fp32"]

    def test_a_derived_model(self, home: Home) -> None:
        """A derived model is listed with what it was derived from, until that is gone."""
        assert home("build", home.bare, "--precision", "fp32").exit_code == 0
        row = home.row("my-tune")
        assert row[:6] == ["my-tune", "derived", "32", "64", "in", "place"]
        assert "fp32" in row
        assert f"\n  derived from {home.bare}\n" in home("models").stdout
        shutil.rmtree(home.bare)
        assert home.row("my-tune")[4] == "gone"

    def test_an_added_model(self, home: Home) -> None:
        """A model that `matryo add` wrote is the operator's own."""
        assert home("add", home.bare, "--id", "mine").exit_code == 0
        assert home.row("mine")[1] == "own"
        assert "derived from" not in home("models").stdout

    def test_a_broken_manifest(self, home: Home) -> None:
        """A manifest that cannot be read is named with its fault, and the others are listed."""
        broken = home.model.models / "broken"
        broken.mkdir()
        (broken / "model.toml").write_text("id = ")
        done = home("models")
        assert done.exit_code == 0
        assert f"{broken / 'model.toml'}: is not TOML" in done.stdout
        assert home.row("tiny")[1] == "own"


class TestRemove:
    """`matryo remove`."""

    def test_an_own_model(self, home: Home) -> None:
        """Checkpoints, artefacts, packed weights and pins go; the own model.toml stays."""
        manifest = read_manifest(home.model.models / home.model.id)
        prepack(find_artifact(home.store, manifest, "fp32"))
        assert list(home.path.rglob("packed-*"))
        pins = pins_path(home.path, "tiny")
        make_folder(pins.parent)
        files = {"model.safetensors": CheckpointFile(sha256="0" * 64)}
        pins.write_text(Pins(revision=COMMIT, files=files).model_dump_json())
        done = home("remove", "tiny")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("tiny: removed ")
        own = home.model.models / "tiny" / "model.toml"
        assert done.stdout.endswith(f"{own} stays\n")
        assert own.is_file()
        assert home.left("tiny") == []
        assert home.row("tiny")[4:6] == ["-", "-"]

    def test_by_an_alias(self, home: Home) -> None:
        """A model may be named as everywhere."""
        assert home("remove", "acme/tiny").exit_code == 0
        assert home.left("tiny") == []

    def test_a_shipped_model(self, home: Home) -> None:
        """What the store has of a shipped model goes; its model.toml is not in the store."""
        checkpoint = home.store.checkpoint("bge-m3", "0" * 16)
        make_folder(checkpoint)
        (checkpoint / "model.safetensors").write_bytes(b"x" * 3_000_000)
        done = home("remove", "BAAI/bge-m3")
        assert done.stdout.startswith(f"bge-m3: removed 3 MB from {home.path}\n")
        assert home.left("bge-m3") == []
        assert home.row("bge-m3")[1] == "shipped"

    @pytest.mark.parametrize("by_path", [False, True])
    def test_a_derived_model(self, home: Home, *, by_path: bool) -> None:
        """A derived model goes with its model.toml, by its id or its path, and its files stay."""
        assert home("build", home.bare, "--precision", "fp32").exit_code == 0
        assert find_derived(home.path, str(home.bare)) == "my-tune"
        (home.bare / "config.json").write_text("{}")  # a change that would derive it anew
        done = home("remove", home.bare if by_path else "my-tune")
        assert done.exit_code == 0, done.output
        assert "stays" not in done.stdout
        assert home.left("my-tune") == []
        assert (home.bare / "model.safetensors").is_file()
        assert "my-tune" not in home("models").stdout

    @pytest.mark.parametrize("name", ["nothing", "bge-m3", "org/name", "../tiny", ".", "..", "/"])
    def test_nothing_there(self, home: Home, name: str) -> None:
        """A model of which the store has nothing is an error in one line, and nothing goes."""
        before = sorted(home.path.rglob("*"))
        done = home("remove", name)
        assert done.exit_code == 1
        assert "has nothing of a model" in done.stderr
        assert done.stderr.count("\n") == 1
        assert sorted(home.path.rglob("*")) == before

    @pytest.mark.parametrize("lock", ["tiny", "my-tune", MODELS_LOCK])
    def test_waits_for_others(self, home: Home, lock: str) -> None:
        """While another process works on the model, nothing goes; then everything does."""
        model_id = "tiny" if lock == "tiny" else "my-tune"
        assert home("build", home.bare, "--precision", "fp32").exit_code == 0
        before = home.left(model_id)
        waiting = threading.Event()

        class Waiting(Recorder):
            def say(self, sentence: str) -> None:
                super().say(sentence)
                waiting.set()

        reporter = Waiting()
        remover = threading.Thread(target=remove_model, args=(home.store, model_id, reporter))
        with home.store.lock(lock):
            remover.start()
            assert waiting.wait(20)
            assert home.left(model_id) == before
        remover.join(20)
        assert home.left(model_id) == []
        (said,) = reporter.said
        expected = "another process is deriving" if lock == MODELS_LOCK else lock
        assert said.startswith(expected)

    @pytest.mark.parametrize("at", [1, 2])
    def test_killed_midway(self, home: Home, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        """A removal that ended at a folder leaves no half model, and the next one ends the work."""
        assert home("build", home.bare, "--precision", "fp32").exit_code == 0
        make_folder(home.store.checkpoint("my-tune", "0" * 16))
        steps = itertools.count(1)

        def end(path: Path) -> None:
            if next(steps) == at:
                raise KeyboardInterrupt
            rmtree(path)

        rmtree = shutil.rmtree
        monkeypatch.setattr(shutil, "rmtree", end)
        with pytest.raises(KeyboardInterrupt):
            remove_model(home.store, "my-tune", SilentReporter())
        monkeypatch.undo()
        assert home.left("my-tune")
        listed = home("models")
        assert listed.exit_code == 0
        assert "my-tune" not in listed.stdout
        assert home("remove", "my-tune").exit_code == 0
        assert home.left("my-tune") == []
