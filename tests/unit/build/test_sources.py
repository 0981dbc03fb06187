"""An artefact is used only while what it was built from is what it was; paths stay as given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from matryo.assembly.models import make_ready
from matryo.build import build as module
from matryo.build.inputs import format_of
from matryo.build.provision import build_model, ensure_model, pull_model
from matryo.catalog.manifest import Manifest
from matryo.catalog.reading import read_manifest
from matryo.cli import main
from matryo.core.environment import load_settings
from matryo.core.errors import ArtifactMissing, CheckpointMismatch, SettingsInvalid
from matryo.core.progress import SILENT
from matryo.store import sources
from matryo.store.artifact import Artifact, find_artifact, unverified_origin, write_record
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model, random_tensors, save_gguf, save_tensors
from tests.unit.build.test_onnx import WORDS, export


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that is not built, without published values."""
    model = make_model(tmp_path, "bert")
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    return model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "home")


@pytest.fixture
def own(tmp_path: Path, model: TinyModel) -> Path:
    """A checkpoint of one's own, in a folder."""
    folder = tmp_path / "own"
    shutil.copytree(model.checkpoint, folder)
    overwrite(folder, model, seed=1)
    return folder


def manifest_of(model: TinyModel) -> Manifest:
    """The manifest as it is on disk now."""
    return read_manifest(model.models / model.id)


def overwrite(folder: Path, model: TinyModel, seed: int) -> str:
    """Put other weights of the same size in the place of a folder's; returns their hash."""
    save_tensors(random_tensors(model.config, seed), folder / "model.safetensors")
    return sha256_file(folder / "model.safetensors")


def build_own(store: Store, model: TinyModel, checkpoint: Path) -> Artifact:
    """Build from files that no manifest pins."""
    return build_model(
        store, manifest_of(model), "fp32", checkpoint, allow_unverified=True, reporter=SILENT
    )


def served(store: Store, model: TinyModel) -> str:
    """Hash of the weights that a server gets."""
    return ensure_model(store, manifest_of(model), "fp32", SILENT).record.checkpoint_sha256


class TestNewPins:
    """model.toml pins other weights, or another tokenizer."""

    def pin(self, model: TinyModel, name: str, seed: int = 2) -> str:
        """Change a published file, and pin the new one."""
        path = model.checkpoint / name
        old = sha256_file(path)
        if name == "model.safetensors":
            new = overwrite(model.checkpoint, model, seed)
        else:
            path.write_text(path.read_text() + "\n")
            new = sha256_file(path)
        toml = model.models / model.id / "model.toml"
        toml.write_text(toml.read_text().replace(old, new))
        return new

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    def test_the_old_artefact_is_not_served(
        self, store: Store, model: TinyModel, name: str
    ) -> None:
        """It is missing, with both hashes; build and serve make the one of the new pins."""
        pull_model(store, manifest_of(model), str(model.checkpoint), SILENT)
        old = ensure_model(store, manifest_of(model), "fp32", SILENT)
        new = self.pin(model, name)
        with pytest.raises(ArtifactMissing, match=f"now pins {name} to {new}"):
            find_artifact(store, manifest_of(model), "fp32")
        pull_model(store, manifest_of(model), str(model.checkpoint), SILENT)
        artifact = ensure_model(store, manifest_of(model), "fp32", SILENT)
        record = artifact.record
        assert new in (record.checkpoint_sha256, record.tokenizer_sha256)
        assert record.key != old.record.key
        assert record.verified

    def test_commands(self, store: Store, model: TinyModel) -> None:
        """`matryo verify`, `build` and a server's own preparation go by the new pins."""
        env = {"MATRYO_HOME": str(store.home), "MATRYO_MODELS": str(model.models)}
        pull_model(store, manifest_of(model), str(model.checkpoint), SILENT)
        assert CliRunner().invoke(main, ["verify", "tiny"], env=env).exit_code == 0
        for seed, command in enumerate(("verify", "serve", "build"), 2):
            new = self.pin(model, "model.safetensors", seed)
            pull_model(store, manifest_of(model), str(model.checkpoint), SILENT)
            if command == "serve":
                make_ready(
                    load_settings(None, model="tiny", home=store.home, models=str(model.models))
                )
            else:
                result = CliRunner().invoke(main, [command, "tiny"], env=env)
                assert result.exit_code == 0, result.output
                assert "already built" not in result.output
            found = find_artifact(store, manifest_of(model), "fp32")
            assert found.record.checkpoint_sha256 == new

    def test_own_weights_do_not_mind(self, store: Store, model: TinyModel, own: Path) -> None:
        """A pin says nothing of weights that it never covered."""
        artifact = build_own(store, model, own)
        self.pin(model, "model.safetensors")
        assert find_artifact(store, manifest_of(model), "fp32") == artifact


class TestOwnFiles:
    """Files of one's own, overwritten in place."""

    def test_weights(self, store: Store, model: TinyModel, own: Path) -> None:
        """Other weights of the same size, with the same times, are found and built from."""
        build_own(store, model, own)
        path = own / "model.safetensors"
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        new = overwrite(own, model, seed=3)
        os.utime(path, ns=times)
        with pytest.raises(ArtifactMissing, match=f"now has sha256 {new}"):
            find_artifact(store, manifest_of(model), "fp32")
        assert served(store, model) == new

    def test_tokenizer(self, store: Store, model: TinyModel, own: Path) -> None:
        """So is another tokenizer.json beside them."""
        build_own(store, model, own)
        path = own / "tokenizer.json"
        path.write_text(path.read_text() + "\n")
        artifact = ensure_model(store, manifest_of(model), "fp32", SILENT)
        assert artifact.record.tokenizer_sha256 == sha256_file(path)

    @pytest.mark.parametrize("kind", ["gguf", "onnx", "data"])
    def test_other_formats(self, store: Store, model: TinyModel, own: Path, kind: str) -> None:
        """GGUF, ONNX and the data files of ONNX are looked at as well."""
        path = own / f"tiny.{'gguf' if kind == 'gguf' else 'onnx'}"
        if kind == "gguf":
            save_gguf(model, path)
        else:
            export(path, location="w.bin" if kind == "data" else None)
            (own / "w.bin").write_bytes(WORDS.tobytes())
        before = build_own(store, model, path)
        match kind:
            case "gguf":
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)
            case "onnx":
                path.write_bytes(path.read_bytes().replace(b"export", b"EXPORT"))
            case _:
                (own / "w.bin").write_bytes((WORDS + 1).tobytes())
        after = ensure_model(store, manifest_of(model), "fp32", SILENT)
        assert after.record.checkpoint_sha256 != before.record.checkpoint_sha256
        assert after.record.key != before.record.key

    def test_a_vocabulary(self, store: Store, model: TinyModel, own: Path) -> None:
        """A tokenizer that was made of vocab.txt is made again when that changes."""
        from tests.checkpoints import vocabulary

        (own / "tokenizer.json").unlink()
        words = vocabulary()
        (own / "vocab.txt").write_text("\n".join(words))
        (own / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        before = build_own(store, model, own).record.tokenizer_sha256
        words[4:6] = words[5:3:-1]
        (own / "vocab.txt").write_text("\n".join(words))
        after = ensure_model(store, manifest_of(model), "fp32", SILENT)
        assert after.record.tokenizer_sha256 != before

    def test_touched(
        self, store: Store, model: TinyModel, own: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same bytes at another time are hashed once, and served; untouched ones never."""
        artifact = build_own(store, model, own)
        hashed: list[Path] = []
        monkeypatch.setattr(
            sources, "sha256_file", lambda path: (hashed.append(path), sha256_file(path))[1]
        )
        assert find_artifact(store, manifest_of(model), "fp32") == artifact
        assert hashed == []
        os.utime(own / "model.safetensors", (1, 1))
        for _ in range(2):
            assert find_artifact(store, manifest_of(model), "fp32") == artifact
        assert hashed == [own / "model.safetensors"]

    def test_gone(self, store: Store, model: TinyModel, own: Path) -> None:
        """Nothing contradicts an artefact whose weights are gone: it still serves."""
        artifact = build_own(store, model, own)
        (own / "tokenizer.json").write_text("{}")
        (own / "model.safetensors").unlink()
        assert find_artifact(store, manifest_of(model), "fp32") == artifact
        shutil.rmtree(own)
        assert ensure_model(store, manifest_of(model), "fp32", SILENT) == artifact

    def test_changed_while_built(
        self, store: Store, model: TinyModel, own: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that changes after it was hashed is not built from."""
        emit = module._emit

        def slow(*args: object) -> object:
            written = emit(*args)  # pyright: ignore[reportArgumentType]
            overwrite(own, model, seed=5)
            return written

        monkeypatch.setattr(module, "_emit", slow)
        with pytest.raises(CheckpointMismatch, match="was changed while it was built from"):
            build_own(store, model, own)

    def test_records_of_earlier_builds(self, store: Store, model: TinyModel, own: Path) -> None:
        """A record without stamps is held against the hashes alone."""
        from dataclasses import replace

        artifact = build_own(store, model, own)
        write_record(artifact.folder, replace(artifact.record, sources=()))
        assert find_artifact(store, manifest_of(model), "fp32").record.key == artifact.record.key
        new = overwrite(own, model, seed=6)
        assert served(store, model) == new

    def test_pinned_graph_with_other_data(self, store: Store, model: TinyModel, own: Path) -> None:
        """A graph whose hash is pinned is not verified if its data file is not."""
        from matryo.catalog.manifest import CheckpointFile

        path = export(own / "m.onnx", location="w.bin")
        (own / "w.bin").write_bytes(WORDS.tobytes())
        pins = {"m.onnx": CheckpointFile(sha256=sha256_file(path))}
        manifest = manifest_of(model).model_copy(update={"alternatives": pins})
        with pytest.raises(CheckpointMismatch, match=r"w\.bin has sha256 .* does not pin"):
            build_model(store, manifest, "fp32", path, allow_unverified=False, reporter=SILENT)
        pins |= {"w.bin": CheckpointFile(sha256=sha256_file(own / "w.bin"))}
        manifest = manifest_of(model).model_copy(update={"alternatives": pins})
        assert build_model(
            store, manifest, "fp32", path, allow_unverified=False, reporter=SILENT
        ).record.verified


def hub_cache(root: Path, files: dict[str, Path]) -> Path:
    """Link files into a snapshot as a hub cache does; returns the snapshot."""
    blobs, snapshot = root / "blobs", root / "snapshots/rev"
    blobs.mkdir(parents=True)
    for name, path in files.items():
        blob = blobs / sha256_file(path)
        shutil.copy(path, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


class TestLinks:
    """A checkpoint by way of links."""

    @pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf", "onnx/model.onnx", "."])
    def test_hub_cache(
        self, tmp_path: Path, store: Store, model: TinyModel, own: Path, name: str
    ) -> None:
        """Suffix and neighbours of the link count; verify knows the kind, a rebuild works."""
        files = {n: own / n for n in ("model.safetensors", "tokenizer.json")}
        files["tiny.gguf"] = save_gguf(model, tmp_path / "tiny.gguf")
        files["onnx/model.onnx"] = export(tmp_path / "tiny.onnx")
        snapshot = hub_cache(tmp_path / "cache", files)
        given = snapshot / name if name != "." else snapshot
        artifact = build_own(store, model, given)
        assert artifact.record.checkpoint_path == str(given)
        assert artifact.record.tokenizer_sha256 == sha256_file(own / "tokenizer.json")
        env = {"MATRYO_HOME": str(store.home), "MATRYO_MODELS": str(model.models)}
        result = CliRunner().invoke(main, ["verify", "tiny"], env=env)
        assert result.exit_code == 0, result.output
        (forward,) = [line for line in result.output.splitlines() if "numpy forward" in line]
        assert forward.startswith("not run" if "onnx" in name else "ok")
        (artifact.folder / "model.onnx").write_bytes(b"rubbish")
        rebuilt = ensure_model(store, manifest_of(model), "fp32", SILENT)
        assert rebuilt.record.key == artifact.record.key

    @pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf", "tiny.onnx"])
    def test_a_blob_itself(
        self, tmp_path: Path, store: Store, model: TinyModel, own: Path, name: str
    ) -> None:
        """A name without a suffix is read by its content, as records of earlier builds have it."""
        made: dict[str, Callable[[], Path]] = {
            "model.safetensors": lambda: own / name,
            "tiny.gguf": lambda: save_gguf(model, tmp_path / name),
            "tiny.onnx": lambda: export(tmp_path / name),
        }
        blob = own / "0123abcd"
        shutil.copy(made[name](), blob)
        assert format_of(blob) == Path(name).suffix
        assert build_own(store, model, blob).record.checkpoint_path == str(blob)

    def test_beside_the_target(
        self, tmp_path: Path, store: Store, model: TinyModel, own: Path
    ) -> None:
        """A link to the weights alone finds what lies beside its target."""
        link = tmp_path / "elsewhere.gguf"
        link.symlink_to(save_gguf(model, own / "tiny.gguf"))
        artifact = build_own(store, model, link)
        assert artifact.record.tokenizer_sha256 == sha256_file(own / "tokenizer.json")
        link = tmp_path / "elsewhere.onnx"
        link.symlink_to(export(own / "m.onnx", location="w.bin"))
        (own / "w.bin").write_bytes(WORDS.tobytes())
        assert build_own(store, model, link).record.checkpoint_path == str(link)

    def test_repointed(self, tmp_path: Path, store: Store, model: TinyModel, own: Path) -> None:
        """A link that leads elsewhere now is another checkpoint."""
        link = tmp_path / "link"
        link.symlink_to(own)
        build_own(store, model, link)
        other = tmp_path / "other"
        shutil.copytree(own, other)
        new = overwrite(other, model, seed=4)
        link.unlink()
        link.symlink_to(other)
        assert served(store, model) == new
        assert unverified_origin(store, "tiny", "fp32") == link

    def test_dangling(self, tmp_path: Path, store: Store, model: TinyModel) -> None:
        """A link to nothing is named with its target."""
        link = tmp_path / "link.gguf"
        link.symlink_to(tmp_path / "gone.gguf")
        with pytest.raises(CheckpointMismatch, match=r"a link to .*gone\.gguf, which does not"):
            build_own(store, model, link)

    def test_relative_and_home(
        self, store: Store, model: TinyModel, own: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path and `~` become absolute; another folder later changes nothing."""
        monkeypatch.chdir(own.parent)
        artifact = build_own(store, model, Path("own"))
        assert artifact.record.checkpoint_path == str(own)
        monkeypatch.setenv("HOME", str(own.parent))
        artifact = build_own(store, model, Path("~/own/model.safetensors"))
        assert artifact.record.checkpoint_path == str(own / "model.safetensors")
        with pytest.raises(SettingsInvalid, match="no-such-user"):
            build_own(store, model, Path("~no-such-user/own"))

    def test_pull_from_a_link(self, tmp_path: Path, store: Store, model: TinyModel) -> None:
        """`pull --from` follows links to folders and of files."""
        names = ("model.safetensors", "tokenizer.json")
        snapshot = hub_cache(tmp_path / "cache", {n: model.checkpoint / n for n in names})
        link = tmp_path / "link"
        link.symlink_to(snapshot)
        folder = pull_model(store, manifest_of(model), str(link), SILENT)
        assert not any((folder / name).is_symlink() for name in names)


UNREAD = {
    "pytorch_model.bin": "PyTorch",
    "model.pt": "PyTorch",
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "adapter_model.safetensors": "adapter",
    "model-00001-of-00002.safetensors": "one of several files",
    "model.zip": "an archive",
    "model.tar.gz": "an archive",
}


class TestUnread:
    """What is not read is named, with the remedy."""

    @pytest.mark.parametrize(("name", "what"), UNREAD.items())
    def test_in_a_folder(
        self, tmp_path: Path, store: Store, model: TinyModel, name: str, what: str
    ) -> None:
        """For `build --checkpoint` and `pull --from`, in a folder or alone."""
        from matryo.core.errors import PullFailed

        folder = tmp_path / "theirs"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / name).write_bytes(b"PK\x03\x04")
        for given in (folder, folder / name):
            with pytest.raises(CheckpointMismatch, match=what) as caught:
                build_own(store, model, given)
            assert name in caught.value.message
        with pytest.raises(PullFailed, match=what) as refused:
            pull_model(store, manifest_of(model), str(folder), SILENT)
        assert name in refused.value.message

    @pytest.mark.parametrize("name", ["tiny.gguf", "onnx/model.onnx", "sub/model.safetensors"])
    def test_files_to_give(self, tmp_path: Path, store: Store, model: TinyModel, name: str) -> None:
        """A folder that holds a file we read under another name says which to give."""
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        with pytest.raises(CheckpointMismatch, match=f"give that file itself, {path}"):
            build_own(store, model, tmp_path / "theirs")
