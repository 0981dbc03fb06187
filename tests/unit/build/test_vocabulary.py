"""A tokenizer of another model is refused, or the file's own is used; the model's own is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import gguf
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from matryo.build.checkpoint.onnx import read_ready_graph
from matryo.build.provision import build_model, pull_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import CheckpointMismatch
from matryo.core.progress import SILENT
from matryo.store.artifact import Artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model, make_tokenizer, save_gguf, vocabulary
from tests.conftest import load_tiny
from tests.recorder import Recorder
from tests.unit.build.test_onnx import WORDS, export


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that is not built."""
    return make_model(tmp_path, "bert")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for files of one's own."""
    path = tmp_path / "own"
    path.mkdir()
    return path


def build(root: Path, model: TinyModel, checkpoint: Path) -> tuple[Artifact, list[str]]:
    """Build from files that no manifest pins; returns what was reported too."""
    recorder = Recorder()
    artifact = build_model(
        Store(root / "home"),
        read_manifest(model.models / model.id),
        "fp32",
        checkpoint,
        allow_unverified=True,
        reporter=recorder,
    )
    return artifact, recorder.said


def change(path: Path, **swaps: str) -> Path:
    """Write the tiny tokenizer with some tokens exchanged for others."""
    data = json.loads(cast("Any", make_tokenizer()).to_str())
    vocab: dict[str, int] = data["model"]["vocab"]
    for old, new in swaps.items():
        if new in vocab:
            vocab[old], vocab[new] = vocab[new], vocab[old]
        else:
            vocab[new] = vocab.pop(old)
    path.write_text(json.dumps(data))
    return path


def other_words(path: Path) -> Path:
    """A tokenizer with as many tokens, two of which have changed places."""
    return change(path, sky="blue")


class TestGguf:
    """A GGUF has the whole vocabulary."""

    def test_its_own(self, tmp_path: Path, model: TinyModel, folder: Path) -> None:
        """The model's tokenizer.json agrees, whatever llama.cpp spells its tokens."""
        make_tokenizer().save(str(folder / "tokenizer.json"))
        artifact, _ = build(tmp_path, model, save_gguf(model, folder / "tiny.gguf"))
        assert artifact.tokenizer.read_bytes() == (folder / "tokenizer.json").read_bytes()

    def test_other_words(self, tmp_path: Path, model: TinyModel, folder: Path) -> None:
        """Two tokens that changed places are named: index, both spellings, and how many."""
        other_words(folder / "tokenizer.json")
        with pytest.raises(
            CheckpointMismatch, match=r"has 'blue' as token 5, but .* has '▁sky' \(2 of"
        ):
            build(tmp_path, model, save_gguf(model, folder / "tiny.gguf"))

    def test_published_but_another(self, tmp_path: Path, model: TinyModel, folder: Path) -> None:
        """Where only the pulled checkpoint has a tokenizer, the file's own is used instead."""
        manifest = read_manifest(model.models / model.id)
        pull_model(Store(tmp_path / "home"), manifest, str(model.checkpoint), SILENT)
        path = save_gguf(model, folder / "tiny.gguf")
        artifact, said = build(tmp_path, model, path)
        assert artifact.tokenizer.read_bytes() == (model.checkpoint / "tokenizer.json").read_bytes()

        path.write_bytes(path.read_bytes().replace("▁blue".encode(), "▁bleu".encode()))
        artifact, said = build(tmp_path, model, path)
        assert any("has 'blue' as token 7" in line and "is used" in line for line in said)
        ids = load_tiny(model, artifact).tokenize(["bleu"])[0].ids.tolist()
        assert ids == [2, 7, 3]

    @pytest.mark.parametrize("more", [1, -1])
    def test_counts(self, tmp_path: Path, model: TinyModel, folder: Path, more: int) -> None:
        """A tokenizer with a token too many or too few is of another model."""
        data = json.loads(cast("Any", make_tokenizer()).to_str())
        vocab = data["model"]["vocab"]
        if more > 0:
            vocab["more"] = len(vocab)
        else:
            del vocab["##z"]
        (folder / "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(CheckpointMismatch, match=r"tokens, but tiny|has nothing as token"):
            build(tmp_path, model, save_gguf(model, folder / "tiny.gguf"))

    def test_special_tokens(self, tmp_path: Path, model: TinyModel, folder: Path) -> None:
        """The same words with another token at the end of a text are another model's."""
        data = json.loads(cast("Any", make_tokenizer()).to_str())
        data["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [2]
        (folder / "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(CheckpointMismatch, match=r"ends a text with token 2, but .* token 3"):
            build(tmp_path, model, save_gguf(model, folder / "tiny.gguf"))

    def test_padding_of_the_table(self, tmp_path: Path, model: TinyModel, folder: Path) -> None:
        """Fillers at the end of a GGUF's vocabulary need no token in tokenizer.json."""
        from matryo.build.vocabulary import find_contradiction

        words = [*vocabulary(), "[PAD900]", "[PAD901]"]
        path = folder / "padded.gguf"
        writer = gguf.GGUFWriter(path, "bert")
        writer.add_tokenizer_model("bert")
        writer.add_token_list(words)
        writer.add_tensor("w", WORDS)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        make_tokenizer().save(str(folder / "tokenizer.json"))
        assert find_contradiction(folder / "tokenizer.json", path, ".gguf", None) is None


class TestOnnx:
    """A graph has the rows of its word table."""

    @pytest.mark.parametrize("dtype", ["plain", "cast", "quantised"])
    def test_rows_are_found(self, folder: Path, dtype: str) -> None:
        """Through casts of the ids and tables in 8 bits."""
        nodes = [helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32)]
        words = numpy_helper.from_array(WORDS, "words")
        scale = numpy_helper.from_array(WORDS[0, 0], "scale")
        table, ids = "words", "input_ids" if dtype == "plain" else "ids"
        if dtype == "quantised":
            words = numpy_helper.from_array(WORDS.astype("int8"), "words")
            nodes.append(helper.make_node("DequantizeLinear", ["words", "scale"], ["floats"]))
            table = "floats"
        nodes.append(helper.make_node("Gather", [table, ids], ["last_hidden_state"]))
        graph = helper.make_graph(
            nodes,
            "g",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ("B", "T"))
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None)],
            [words, scale],
        )
        path = folder / "m.onnx"
        path.write_bytes(helper.make_model(graph).SerializeToString())
        assert read_ready_graph(path).n_rows == len(WORDS)

    def test_too_many_tokens(self, tmp_path: Path, model: TinyModel, folder: Path) -> None:
        """An id without a row is refused with both counts."""
        tokenizer: Any = make_tokenizer()
        tokenizer.add_tokens(["one", "more"])
        tokenizer.save(str(folder / "tokenizer.json"))
        with pytest.raises(CheckpointMismatch, match=r"has 2 added tokens.*resized"):
            build(tmp_path, model, export(folder / "m.onnx"))

    def test_too_few_tokens(
        self, tmp_path: Path, model: TinyModel, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More spare rows than padding ever has are refused; padding is not."""
        data = json.loads(cast("Any", make_tokenizer()).to_str())
        for name in ("[MASK]", "##z", "##y"):
            del data["model"]["vocab"][name]
        (folder / "tokenizer.json").write_text(json.dumps(data))
        path = export(folder / "m.onnx")
        build(tmp_path, model, path)
        monkeypatch.setattr("matryo.build.vocabulary.MAX_SPARE_ROWS", 2)
        with pytest.raises(CheckpointMismatch, match=r"has 65 tokens, but .* 68 rows"):
            build(tmp_path, model, path)


FACTS: dict[str, Any] = {
    "vocab.txt": "\n".join(vocabulary()),
    "vocab.json": {word: index for index, word in enumerate(vocabulary())},
    "tokenizer_config.json": {
        "added_tokens_decoder": {"2": {"content": "[CLS]"}, "3": {"content": "[SEP]"}}
    },
    "special_tokens_map.json": {"cls_token": {"content": "[CLS]"}, "sep_token": "[SEP]"},
    "config.json": {"pad_token_id": 0, "vocab_size": 68, "eos_token_id": 50256},
}
OTHERS: dict[str, dict[str, str]] = {
    "vocab.txt": {"sky": "blue"},
    "vocab.json": {"sky": "blue"},
    "tokenizer_config.json": {"[CLS]": "[SEP]"},
    "special_tokens_map.json": {"[SEP]": "[END]"},
    "config.json": {"[PAD]": "[UNK]"},
}


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_files_beside(tmp_path: Path, model: TinyModel, folder: Path, kind: str, name: str) -> None:
    """What lies beside the weights contradicts another model's tokenizer, and not the model's."""
    if kind == "onnx":
        (folder / "onnx").mkdir()
        checkpoint = export(folder / "onnx/m.onnx")
    else:
        checkpoint = folder / "model.safetensors"
        content = (model.checkpoint / "model.safetensors").read_bytes()
        checkpoint.write_bytes(content)
    fact = FACTS[name]
    (folder / name).write_text(fact if isinstance(fact, str) else json.dumps(fact))
    tokenizer: Any = make_tokenizer()
    # As MiniLM's: other bytes than the pinned file, so that nothing is verified.
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    build(tmp_path, model, checkpoint)

    data = json.loads(change(folder / "tokenizer.json", **OTHERS[name]).read_text())
    if name == "special_tokens_map.json":
        template = data["post_processor"]
        text = json.dumps(template).replace("[SEP]", "[END]")
        data["post_processor"] = json.loads(text)
        (folder / "tokenizer.json").write_text(json.dumps(data))
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointMismatch, match="they are of two models") as caught:
        build(tmp_path, model, checkpoint)
    assert str(folder / name) in caught.value.message
    assert str(folder / "tokenizer.json") in caught.value.message


def test_pinned_files_need_no_proof(tmp_path: Path, model: TinyModel) -> None:
    """A checkpoint whose hashes are the manifest's is taken as the manifest says."""
    (model.checkpoint / "config.json").write_text(json.dumps({"pad_token_id": 1}))
    artifact, _ = build(tmp_path, model, model.checkpoint)
    assert artifact.record.verified
