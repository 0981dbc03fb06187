"""Positions that begin after the padding token's id, attention by distance, and tensor names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from matryo.build import arch
from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import CheckpointMismatch, ManifestInvalid, UnsupportedArchitecture
from matryo.core.progress import SILENT
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from tests import arch as tiny
from tests.checkpoints import Tensors, TinyModel, make_model, save_gguf, save_tensors
from tests.conftest import build_tiny, load_tiny
from tests.reference import hidden_states, pooled

POSITIONS = "embeddings.position_embeddings.weight"


def rewrite(model: TinyModel, tensors: Tensors) -> None:
    """Replace the tensors of a model's checkpoint, and the hash in its manifest."""
    path = model.checkpoint / "model.safetensors"
    before = sha256_file(path)
    save_tensors(tensors, path)
    change_manifest(model, before, sha256_file(path))


def change_manifest(model: TinyModel, old: str, new: str) -> None:
    """Replace a text in model.toml."""
    path = model.models / model.id / "model.toml"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def vectors(root: Path, model: TinyModel, *lengths: int) -> NDArray[np.float32]:
    """The vectors of texts without the ids below 4."""
    engine = load_tiny(model, build_tiny(root, model))
    texts = [np.random.default_rng(n).integers(4, 60, n) for n in lengths]
    return np.stack(engine.embed(texts, [32] * len(texts)).embeddings)


class TestCountedPositions:
    """The first token of a text has the row after the padding token's."""

    @pytest.mark.parametrize("pad", [0, 1, 3])
    def test_bert_reads_other_rows(self, tmp_path: Path, pad: int) -> None:
        """`bert` gives the same vectors only if the table lacks the rows before the first token."""
        rows = 1200
        model = make_model(
            tmp_path, "xlm_roberta", pad_token_id=pad, max_position_embeddings=rows + pad + 1
        )
        expected = vectors(tmp_path, model, 5, 40)
        config = {k: v for k, v in model.config.items() if k not in {"model_type", "pad_token_id"}}

        def as_bert(model_id: str, table: NDArray[np.float32]) -> NDArray[np.float32]:
            changes: dict[str, Any] = config | {"max_position_embeddings": len(table)}
            other = make_model(tmp_path, "bert", model_id=model_id, **changes)
            rewrite(other, model.tensors | {POSITIONS: table})
            return vectors(tmp_path, other, 5, 40)

        table = model.tensors[POSITIONS]
        assert np.array_equal(as_bert("late", table[pad + 1 :]), expected)
        assert np.abs(as_bert("all", table) - expected).max() > 0.01

    def test_padding_token_in_a_text(self, tmp_path: Path) -> None:
        """A padding token in a text has its own row and does not count, alone and in a batch."""
        model = make_model(tmp_path, "xlm_roberta", pad_token_id=7, max_position_embeddings=1208)
        engine = load_tiny(model, build_tiny(tmp_path, model))
        texts = [[4, 7, 7, 9, 10, 7], [7, 7, 7], [5, 6, 8, 9, 10, 11, 12, 7, 13]]
        arrays = [np.array(ids) for ids in texts]
        together = engine.embed(arrays, [32] * 3).embeddings
        for ids, array, vector in zip(texts, arrays, together, strict=True):
            hidden = hidden_states(model.config, model.tensors, ids)
            expected = pooled(hidden, layer_norm_eps=None, dimensions=32)
            assert np.abs(vector - expected).max() < 1e-5
            assert np.array_equal(vector, engine.embed([array], [32]).embeddings[0])

    @pytest.mark.parametrize("model_type", ["xlm_roberta", "roberta", "mpnet"])
    def test_longest_text(self, tmp_path: Path, model_type: str) -> None:
        """A table of 514 rows has positions for 512 tokens; model.toml may not say more."""
        config = {k: v for k, v in tiny_config(model_type).items() if k != "model_type"}
        config |= {"max_position_embeddings": 514}
        model = make_model(tmp_path, base_of(model_type), max_tokens=512, **config)
        change_manifest(model, f'"{base_of(model_type)}"', f'"{model_type}"')
        folder = model.models / model.id
        arch.load(read_manifest(folder))
        assert np.isfinite(vectors(tmp_path, model, 512)).all()
        for wrong in (513, 514):
            change_manifest(model, f"max_tokens = {wrong - 1}", f"max_tokens = {wrong}")
            message = f"max_tokens = {wrong}, .* = 514 leaves positions for 512.* Lower.* to 512 "
            with pytest.raises(ManifestInvalid, match=message):
                arch.load(read_manifest(folder))

    @pytest.mark.parametrize(
        ("model_type", "changes", "message"),
        [
            ("xlm_roberta", {"max_position_embeddings": 2}, "greater than pad_token_id + 1 = 2"),
            ("xlm_roberta", {"pad_token_id": -1}, "architecture.pad_token_id"),
            ("mpnet", {"max_position_embeddings": 2}, "greater than 2"),
            ("mpnet", {"max_position_embeddings": 2051}, "less than or equal to 2050"),
            ("mpnet", {"num_attention_heads": 5}, "multiple of num_attention_heads = 5"),
            ("distilbert", {"n_heads": 5}, "multiple of n_heads = 5"),
            ("distilbert", {"activation": "relu"}, "architecture.activation"),
        ],
    )
    def test_configs_without_a_graph(
        self, tmp_path: Path, model_type: str, changes: dict[str, Any], message: str
    ) -> None:
        """A config that leaves no position, or that no graph computes, is refused."""
        model = make_model(tmp_path, model_type)
        for key, value in changes.items():
            old = model.config[key]
            change_manifest(model, f"{key} = {quoted(old)}", f"{key} = {quoted(value)}")
        with pytest.raises(UnsupportedArchitecture, match=re.escape(message)):
            arch.load(read_manifest(model.models / model.id))


def tiny_config(model_type: str) -> dict[str, Any]:
    """The config of a tiny model."""
    return dict(tiny.of(base_of(model_type)).CONFIG)


def base_of(model_type: str) -> str:
    """The module of `model_type`, whose other name may be `roberta`."""
    return "xlm_roberta" if model_type == "roberta" else model_type


def quoted(value: object) -> str:
    """A value as TOML has it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("n_tokens", [130, 300, 600])
def test_every_bucket_of_distances(tmp_path: Path, n_tokens: int) -> None:
    """Attention by distance agrees with the reference for all distances, masked and unmasked."""
    model = make_model(tmp_path, "mpnet", max_tokens=1200)
    ids = np.random.default_rng(n_tokens).integers(4, 60, n_tokens)
    hidden = hidden_states(model.config, model.tensors, ids.tolist())
    (found,) = vectors(tmp_path, model, n_tokens)
    expected = pooled(hidden, layer_norm_eps=None, dimensions=32)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("model_type", ["bert", "xlm_roberta", "distilbert", "mpnet"])
def test_epsilon_of_the_norms(tmp_path: Path, model_type: str) -> None:
    """The norm after small embeddings agrees with the reference, for which epsilon decides."""
    changes: dict[str, Any] = {} if model_type == "distilbert" else {"layer_norm_eps": 1e-5}
    model = make_model(tmp_path, model_type, **changes)
    tables = ("word_embeddings.weight", "position_embeddings.weight", "type_embeddings.weight")
    for name in [name for name in model.tensors if name.endswith(tables)]:
        model.tensors[name] = model.tensors[name] * np.float32(1e-3)
    rewrite(model, model.tensors)
    ids = np.random.default_rng(20).integers(4, 60, 20)
    hidden = hidden_states(model.config, model.tensors, ids.tolist())
    expected = pooled(hidden, layer_norm_eps=None, dimensions=32)
    assert np.abs(vectors(tmp_path, model, 20)[0] - expected).max() < 1e-5


HEADS = {
    "xlm_roberta": ("roberta.", ["lm_head.dense.weight", "classifier.out_proj.weight"]),
    "distilbert": ("distilbert.", ["vocab_projector.bias", "pre_classifier.weight"]),
    "mpnet": ("mpnet.", ["lm_head.layer_norm.weight", "qa_outputs.bias"]),
    "bert": ("bert.", ["cls.predictions.bias", "classifier.weight"]),
}


@pytest.mark.parametrize("model_type", HEADS)
class TestNames:
    """A checkpoint is read under the names of a model with a task head."""

    def test_with_a_head(self, tmp_path: Path, model_type: str) -> None:
        """Names with a prefix are read, and tensors of the head are not used."""
        model = make_model(tmp_path, model_type)
        expected = vectors(tmp_path, model, 20)
        prefix, heads = HEADS[model_type]
        tensors = {prefix + name: tensor for name, tensor in model.tensors.items()}
        rewrite(model, tensors | {name: np.ones(3, np.float32) for name in heads})
        assert np.array_equal(vectors(tmp_path, model, 20), expected)

    def test_old_names_of_norms(self, tmp_path: Path, model_type: str) -> None:
        """The weights of a norm may have the names that TensorFlow gives them."""
        model = make_model(tmp_path, model_type)
        expected = vectors(tmp_path, model, 20)
        prefix, _ = HEADS[model_type]
        old: Tensors = {}
        for name, tensor in model.tensors.items():
            new = re.sub(r"(LayerNorm|layer_norm)\.weight$", r"\1.gamma", name)
            old[prefix + re.sub(r"(LayerNorm|layer_norm)\.bias$", r"\1.beta", new)] = tensor
        rewrite(model, old)
        assert np.array_equal(vectors(tmp_path, model, 20), expected)


def test_positions_are_missing_in_a_file_of_the_hub(tmp_path: Path) -> None:
    """Only a GGUF may lack the rows up to the padding token's."""
    model = make_model(tmp_path, "xlm_roberta")
    rewrite(model, model.tensors | {POSITIONS: model.tensors[POSITIONS][2:]})
    with pytest.raises(CheckpointMismatch, match=r"shape \(1200, 32\), .*says \(1202, 32\)"):
        build_tiny(tmp_path, model)


@pytest.mark.parametrize("rows", [1199, 1201, 1203])
def test_positions_of_a_gguf(tmp_path: Path, rows: int) -> None:
    """A GGUF has all rows of the table, or all rows after the padding token's."""
    model = make_model(tmp_path, "xlm_roberta")
    table = np.zeros((rows + 2, 32), np.float32)
    model.tensors[POSITIONS] = table
    path = save_gguf(model, tmp_path / "tiny.gguf")
    with pytest.raises(CheckpointMismatch, match=r"'position_embd.weight' .*says \(1202, 32\)"):
        build_own(tmp_path, model, path)


def build_own(root: Path, model: TinyModel, checkpoint: Path) -> None:
    """Build from a file that no manifest pins."""
    manifest = read_manifest(model.models / model.id)
    build_model(
        Store(root / "home"), manifest, "fp32", checkpoint, allow_unverified=True, reporter=SILENT
    )


def test_roberta_is_another_name(tmp_path: Path) -> None:
    """A `roberta` has the vectors of an `xlm_roberta`."""
    model = make_model(tmp_path, "xlm_roberta")
    expected = vectors(tmp_path, model, 20)
    change_manifest(model, '"xlm_roberta"', '"roberta"')
    assert np.array_equal(vectors(tmp_path, model, 20), expected)


@pytest.mark.parametrize("model_type", ["xlm_roberta", "distilbert", "mpnet"])
def test_every_key_is_found_in_the_files(model_type: str) -> None:
    """The tables of keys name every key of a config, and no other."""
    module: Any = importlib.import_module(f"matryo.build.arch.{model_type}")
    fields = set(module.Config.model_fields)
    assert set(module.HUB_KEYS) == fields
    assert set(module.GGUF_KEYS) <= fields | {"max_tokens"}
    assert not set(module.HUB_FIXED) & fields
    assert set(tiny.of(model_type).CONFIG) == fields
