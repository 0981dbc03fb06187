"""A build is complete or absent, and finds damaged files."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matryo.build import emit
from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint
from matryo.build.provision import build_model, ensure_model, pull_model
from matryo.catalog.manifest import CheckpointFile, Manifest
from matryo.catalog.reading import read_manifest
from matryo.core.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    CheckpointMismatch,
    SetupError,
    StoreFull,
    StoreUnwritable,
)
from matryo.core.progress import SILENT
from matryo.engine import plan_cores
from matryo.engine.factory import load_engine
from matryo.store import artifact as artifacts
from matryo.store.artifact import find_artifact
from matryo.store.files import room_for, sha256_file
from matryo.store.layout import Store
from tests.checkpoints import (
    TinyModel,
    make_model,
    random_tensors,
    save_gguf,
    save_tensors,
)
from tests.conftest import build_tiny, load_tiny
from tests.recorder import Recorder


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model without an artefact."""
    return make_model(tmp_path, "bert")


@pytest.fixture
def manifest(model: TinyModel) -> Manifest:
    """The manifest of the tiny model."""
    return read_manifest(model.models / model.id)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store, the same one that `build_tiny` uses."""
    return Store(tmp_path / "home")


def build(
    store: Store, manifest: Manifest, checkpoint: Path | None = None, *, unverified: bool = False
) -> list[str]:
    """Run `matryo build`; returns the reported lines."""
    recorder = Recorder()
    build_model(
        store,
        manifest,
        "fp32",
        checkpoint,
        allow_unverified=unverified,
        reporter=recorder,
    )
    return recorder.said


def fine_tuned(model: TinyModel, folder: Path) -> Path:
    """A checkpoint of the same shape with other weights."""
    shutil.copytree(model.checkpoint, folder)
    save_tensors(random_tensors(model.config, seed=1), folder / "model.safetensors")
    return folder


def stated_tensors(content: bytes) -> dict[str, Any] | None:
    """The tensors of a safetensors file by its own header; None where that is not one.

    A tensor whose dtype is not F32 is None.
    """
    length = int.from_bytes(content[:8], "little")
    data = content[8 + length :]
    try:
        header = json.loads(content[8 : 8 + length].decode())
        spans = sorted(fact["data_offsets"] for fact in header.values())
        sizes = [math.prod(f["shape"]) * {"F32": 4, "I32": 4}[f["dtype"]] for f in header.values()]
        offsets = [fact["data_offsets"] for fact in header.values()]
        assert [end - start for start, end in offsets] == sizes
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert spans[-1][1] == len(data)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return None
    return {
        name: np.frombuffer(data[slice(*fact["data_offsets"])], "<f4").reshape(fact["shape"])
        if fact["dtype"] == "F32"
        else None
        for name, fact in header.items()
    }


class TestIdentity:
    """The inputs of a build determine its key, and whether it is built again."""

    def test_pulled_checkpoint_is_used(
        self, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """Without --checkpoint the store's checkpoint is built; a second build does nothing."""
        pull_model(store, manifest, str(model.checkpoint), SILENT)
        assert any("checked against" in line for line in build(store, manifest))
        (line,) = build(store, manifest)
        assert "already built" in line

    def test_other_weights_need_unverified(
        self, tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """Weights that are not the manifest's are refused with both hashes, or allowed."""
        other = fine_tuned(model, tmp_path / "other")
        with pytest.raises(CheckpointMismatch, match="--unverified"):
            build(store, manifest, other)
        build(store, manifest, other, unverified=True)
        assert not find_artifact(store, manifest, "fp32").record.verified

    def test_other_formats_may_be_pinned(
        self, tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """A file named in [alternatives] is accepted like the file that is pulled."""
        path = save_gguf(model, tmp_path / "tiny.gguf")
        with pytest.raises(CheckpointMismatch, match=r"pinned to no \.gguf file"):
            build(store, manifest, path)
        pinned = {"gguf/tiny.gguf": CheckpointFile(sha256=sha256_file(path))}
        shutil.copy(model.checkpoint / "tokenizer.json", tmp_path)
        manifest = manifest.model_copy(update={"alternatives": pinned})
        build(store, manifest, path)
        assert find_artifact(store, manifest, "fp32").record.verified

    def test_fingerprint_names_the_weights(
        self, tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """Other weights give another fingerprint, and the same weights the same one."""
        first = build_tiny(tmp_path, model).record.key
        build(store, manifest, fine_tuned(model, tmp_path / "other"), unverified=True)
        assert find_artifact(store, manifest, "fp32").record.key != first
        assert build_tiny(tmp_path, model).record.key == first

    def test_only_the_current_build_is_kept(
        self, tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """A new build replaces the old artefact on disk."""
        build_tiny(tmp_path, model)
        build(store, manifest, fine_tuned(model, tmp_path / "other"), unverified=True)
        folder = store.artifacts(manifest.id, "fp32")
        assert len([path for path in folder.iterdir() if path.is_dir()]) == 1

    def test_changed_manifest_is_not_served(
        self, tmp_path: Path, store: Store, model: TinyModel
    ) -> None:
        """An artefact of another model.toml counts as missing."""
        build_tiny(tmp_path, model)
        path = model.models / model.id / "model.toml"
        path.write_text(path.read_text().replace("max_tokens = 64", "max_tokens = 63"))
        with pytest.raises(ArtifactMissing, match=r"another model\.toml"):
            find_artifact(store, read_manifest(path.parent), "fp32")

    def test_upgrade_keeps_own_weights(
        self,
        tmp_path: Path,
        store: Store,
        model: TinyModel,
        manifest: Manifest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """After an upgrade an operator's own weights are built again, never the published ones."""
        other = fine_tuned(model, tmp_path / "other")
        build(store, manifest, other, unverified=True)
        before = find_artifact(store, manifest, "fp32").record.checkpoint_sha256
        monkeypatch.setattr(artifacts, "BUILDER_VERSION", 999)
        monkeypatch.setattr("matryo.build.build.BUILDER_VERSION", 999)
        with pytest.raises(ArtifactMissing, match="another version"):
            find_artifact(store, manifest, "fp32")
        ensure_model(store, manifest, "fp32", SILENT)
        assert find_artifact(store, manifest, "fp32").record.checkpoint_sha256 == before

        monkeypatch.setattr(artifacts, "BUILDER_VERSION", 1000)
        shutil.rmtree(other)
        with pytest.raises(ArtifactMissing, match="which is gone"):
            ensure_model(store, manifest, "fp32", SILENT)


class TestDamage:
    """Every damaged file is found before it can give a wrong vector."""

    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
    @pytest.mark.parametrize("how", ["flipped", "shorter", "gone"])
    def test_artefact(self, tmp_path: Path, model: TinyModel, name: str, how: str) -> None:
        """A damaged artefact is not loaded, and the error names the remedy."""
        artifact = build_tiny(tmp_path, model)
        path = artifact.folder / name
        content = bytearray(path.read_bytes())
        match how:
            case "flipped":
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
            case "shorter":
                path.write_bytes(content[:-1])
            case _:
                path.unlink()
        with pytest.raises(ArtifactDamaged, match="matryo build tiny") as caught:
            load_tiny(model, artifact)
        assert str(path) in caught.value.message

    def test_damaged_artefact_is_built_again(
        self, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """`matryo build` replaces a damaged artefact."""
        pull_model(store, manifest, str(model.checkpoint), SILENT)
        build(store, manifest)
        artifact = find_artifact(store, manifest, "fp32")
        (artifact.folder / "model.onnx.data").write_bytes(b"rubbish")
        build(store, manifest)
        load_engine(manifest, find_artifact(store, manifest, "fp32"), plan_cores(1))

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("", ArtifactDamaged, "Expecting value"),
            ("{", ArtifactDamaged, "Expecting property name"),
            ("[]", ArtifactDamaged, "not an object"),
            ('{"files": {}}', ArtifactMissing, "built by another version"),
            ('{"builder_version": VERSION, "output_key": "KEY"}', ArtifactDamaged, "model_id: "),
            (
                '{"builder_version": VERSION, "output_key": "KEY", "model_id": 3}',
                ArtifactDamaged,
                "model_id: Input should be a valid string",
            ),
        ],
    )
    def test_record(
        self,
        tmp_path: Path,
        store: Store,
        model: TinyModel,
        manifest: Manifest,
        text: str,
        error: type[SetupError],
        message: str,
    ) -> None:
        """A damaged record is not taken for an artefact; the next build replaces it."""
        artifact = build_tiny(tmp_path, model)
        text = text.replace("VERSION", f"{artifacts.BUILDER_VERSION}")
        path = artifact.folder / "artifact.json"
        path.write_text(text.replace("KEY", manifest.output_key))
        with pytest.raises(error, match=message) as caught:
            find_artifact(store, manifest, "fp32")
        assert str(artifact.folder) in caught.value.message
        assert build_tiny(tmp_path, model) == artifact

    @pytest.mark.parametrize("text", ["{", "{}", '{"key": "x"}'])
    def test_current(
        self, tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest, text: str
    ) -> None:
        """If the file that names the artefact is damaged, no artefact is chosen."""
        build_tiny(tmp_path, model)
        path = store.artifacts("tiny", "fp32") / "current"
        path.write_text(text)
        with pytest.raises(ArtifactDamaged, match="current cannot be read"):
            find_artifact(store, manifest, "fp32")
        with pytest.raises(ArtifactDamaged, match="current cannot be read"):
            ensure_model(store, manifest, "fp32", SILENT)
        assert path.read_text() == text

    def test_current_of_earlier_stores(
        self, tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """A file with the key alone still names the artefact, whose record names the origin."""
        other = fine_tuned(model, tmp_path / "other")
        build(store, manifest, other, unverified=True)
        artifact = find_artifact(store, manifest, "fp32")
        (artifact.folder.parent / "current").write_text(artifact.record.key)
        assert find_artifact(store, manifest, "fp32") == artifact
        assert artifacts.unverified_origin(store, "tiny", "fp32") == other
        (artifact.folder / "model.onnx").unlink()
        assert ensure_model(store, manifest, "fp32", SILENT) == artifact

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(lambda whole: whole[: len(whole) // 2], id="truncated"),
            pytest.param(lambda whole: whole[:4], id="stub"),
            pytest.param(lambda whole: b"", id="empty"),
            pytest.param(lambda whole: b"\xff" * 8 + whole[8:], id="huge-header"),
            pytest.param(lambda whole: whole[:8] + b"{" * 100 + whole[108:], id="bad-header"),
        ],
    )
    def test_checkpoint(
        self,
        store: Store,
        model: TinyModel,
        manifest: Manifest,
        content: Callable[[bytes], bytes],
    ) -> None:
        """A damaged safetensors file is refused and named, even if its hash is not checked."""
        path = model.checkpoint / "model.safetensors"
        path.write_bytes(content(path.read_bytes()))
        with pytest.raises(CheckpointMismatch, match="has sha256"):
            build(store, manifest, model.checkpoint)
        with pytest.raises(CheckpointMismatch, match="not a whole safetensors file"):
            build(store, manifest, model.checkpoint, unverified=True)

    @settings(max_examples=60, deadline=None)
    @given(cut=st.floats(0, 1, exclude_max=True))
    def test_checkpoint_cut_anywhere(
        self, tmp_path_factory: pytest.TempPathFactory, cut: float
    ) -> None:
        """A truncated file is refused, wherever it ends."""
        path = tmp_path_factory.mktemp("cut") / "model.safetensors"
        save_tensors({"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float32)}, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(cut * len(content))])
        with pytest.raises(CheckpointMismatch, match="not a whole safetensors file") as caught:
            SafetensorsCheckpoint(path)
        assert str(path) in caught.value.message

    @settings(max_examples=150, deadline=None)
    @given(at=st.floats(0, 1, exclude_max=True), new=st.binary(min_size=1, max_size=8))
    def test_checkpoint_overwritten_anywhere(
        self, tmp_path_factory: pytest.TempPathFactory, at: float, new: bytes
    ) -> None:
        """The reader agrees with an independent reading of a damaged file's header."""
        path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
        save_tensors({"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float32)}, path)
        content = bytearray(path.read_bytes())
        start = int(at * len(content))
        content[start : start + len(new)] = new[: len(content) - start]
        path.write_bytes(content)
        expected = stated_tensors(bytes(content))
        if expected is None:
            with pytest.raises(CheckpointMismatch, match="not a whole safetensors file"):
                SafetensorsCheckpoint(path)
            return
        checkpoint = SafetensorsCheckpoint(path)
        assert checkpoint.names == expected.keys()
        for name, tensor in expected.items():
            if tensor is None:
                with pytest.raises(CheckpointMismatch, match="weights must be one of"):
                    checkpoint.read(name)
            elif not np.isfinite(tensor).all():
                with pytest.raises(CheckpointMismatch, match="holds NaN or infinity"):
                    checkpoint.read(name)
            else:
                assert np.array_equal(checkpoint.read(name), tensor)

    def test_stored_checkpoint_is_fetched_again(
        self, store: Store, model: TinyModel, manifest: Manifest
    ) -> None:
        """A checkpoint damaged in the store is not built; without a source the error says so."""
        folder = pull_model(store, manifest, str(model.checkpoint), SILENT)
        (folder / "model.safetensors").write_bytes(b"rubbish")
        with pytest.raises(SetupError, match="names no source"):
            build(store, manifest)
        pull_model(store, manifest, str(model.checkpoint), SILENT)
        build(store, manifest)

    def test_missing_files(self, tmp_path: Path, store: Store, manifest: Manifest) -> None:
        """The error for a folder without the files, or a file of another type, explains the fault."""
        with pytest.raises(CheckpointMismatch, match="no such file"):
            build(store, manifest, tmp_path / "nowhere")
        odd = tmp_path / "weights.bin"
        odd.write_bytes(b"x")
        with pytest.raises(CheckpointMismatch, match=r"cannot read '\.bin' checkpoints"):
            build(store, manifest, odd)


class TestInterruption:
    """A build that fails leaves the previous artefact unchanged."""

    def test_killed(self, tmp_path: Path, store: Store, manifest: Manifest) -> None:
        """A killed build leaves no artefact, and the next build cleans up and succeeds."""
        big = make_model(tmp_path / "big", "bert", model_id="tiny", ballast_bytes=1 << 28)
        env = os.environ | {"MATRYO_HOME": str(store.home), "MATRYO_MODELS": str(big.models)}
        command = [sys.executable, "-m", "matryo", "build", "tiny", "--checkpoint"]
        process = subprocess.Popen([*command, str(big.checkpoint)], env=env)
        folder = store.artifacts("tiny", "fp32")
        end = time.monotonic() + 30
        while not list(folder.glob("new.tmp-*")):  # hashing 256 MB takes a while from here
            assert time.monotonic() < end
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert not list(folder.rglob("artifact.json"))
        done = subprocess.run(
            [*command, str(big.checkpoint)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not list(folder.glob("new.tmp-*"))

    def test_full_disk(
        self,
        tmp_path: Path,
        store: Store,
        model: TinyModel,
        manifest: Manifest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If the disk fills up, the error says so, and the previous artefact still serves."""
        build_tiny(tmp_path, model)

        def full(*_: object) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(emit.GraphBuilder, "tensor", full)
            with pytest.raises(StoreFull, match="MATRYO_HOME"):
                build(store, manifest, fine_tuned(model, tmp_path / "other"), unverified=True)
        load_tiny(model, find_artifact(store, manifest, "fp32"))
        assert not list(store.artifacts("tiny", "fp32").glob("*.tmp-*"))

    def test_a_store_that_is_not_ours(self, tmp_path: Path, manifest: Manifest) -> None:
        """The error for a read-only home names the setting that moves it."""
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(StoreUnwritable, match="MATRYO_HOME"):
            build(Store(tmp_path / "file" / "home"), manifest)

    def test_too_little_room_is_refused_at_once(self, tmp_path: Path) -> None:
        """A build for which the disk has no room does not begin."""
        with pytest.raises(StoreFull, match="bytes needed"), room_for(tmp_path / "x", 1 << 60):
            pytest.fail("should not get here")


def test_tokenizer_from_a_vocabulary(
    tmp_path: Path, store: Store, model: TinyModel, manifest: Manifest
) -> None:
    """A checkpoint with vocab.txt alone gets its tokenizer.json from transformers."""
    from tests.checkpoints import vocabulary

    bare = tmp_path / "bare"
    shutil.copytree(model.checkpoint, bare)
    (bare / "tokenizer.json").unlink()
    (bare / "vocab.txt").write_text("\n".join(vocabulary()))
    (bare / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    expected = load_tiny(model, build_tiny(tmp_path, model)).tokenize(["The sky is blue: x"])
    build(store, manifest, bare, unverified=True)
    found = load_tiny(model, find_artifact(store, manifest, "fp32")).tokenize(
        ["The sky is blue: x"]
    )
    assert np.array_equal(found[0].ids, expected[0].ids)

    (bare / "vocab.txt").unlink()
    with pytest.raises(CheckpointMismatch, match="nor a vocabulary to make one from"):
        build(store, manifest, bare, unverified=True)


def test_serving_imports_nothing_of_the_build() -> None:
    """The serving process never imports transformers, onnx, safetensors, torch or a hub client."""
    code = (
        "import sys; import matryo.main, matryo.commands.serve, matryo.cli; "
        "print([name for name in ('transformers', 'onnx', 'safetensors', 'torch', "
        "'gguf', 'huggingface_hub', 'httpx2', 'pyarrow', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_graph_runs_in_plain_onnxruntime(tmp_path: Path, model: TinyModel) -> None:
    """Another tool can run the artefact with input_ids and attention_mask alone."""
    import onnxruntime

    artifact = build_tiny(tmp_path, model)
    options: Any = onnxruntime.SessionOptions()  # pyright: ignore[reportUnknownVariableType]
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(str(artifact.graph), options)
    ids = np.arange(4, 14)[None]
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    (vector,) = load_tiny(model, artifact).embed([ids[0]], [32]).embeddings
    mean = hidden[0].mean(axis=0)
    assert np.abs(mean / np.linalg.norm(mean) - vector).max() < 1e-6
