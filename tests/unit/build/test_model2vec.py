"""Static tables: row numbers, factors, both names of the table, and texts without a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.build.arch import model2vec
from matryo.core.choices import PRECISIONS, Precision
from matryo.core.errors import CheckpointMismatch
from matryo.engine.onnx import OnnxEngine
from tests.checkpoints import TinyModel, make_model, save_tensors
from tests.conftest import build_tiny, load_tiny
from tests.unit.build.test_graphs import rewritten

N_IDS, HIDDEN = 68, 32


def saved(tmp_path: Path, **tensors: Any) -> TinyModel:
    """A model whose file has these tensors; two underscores stand for a dot."""
    model = make_model(tmp_path, "model2vec")
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    rewritten(tmp_path, model, named)
    return model


def table(n_rows: int = N_IDS) -> Any:
    """Random rows."""
    return np.random.default_rng(0).standard_normal((n_rows, HIDDEN), dtype=np.float32)


def vectors(
    tmp_path: Path, model: TinyModel, precision: Precision = "fp32"
) -> list[np.ndarray[Any, Any]]:
    """Vectors of a few texts."""
    engine = load_tiny(model, build_tiny(tmp_path, model, precision))
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, N_IDS, length) for length in (1, 5, 40)]
    return engine.embed(texts, [HIDDEN] * len(texts)).embeddings


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("row_type", [np.int32, np.int64])
@pytest.mark.parametrize("factor_type", [None, np.float32, np.float64])
def test_row_numbers_and_factors(
    tmp_path: Path, precision: Precision, row_type: Any, factor_type: Any
) -> None:
    """A file with row numbers and factors gives the vectors of the table that they stand for."""
    rows = table(20)
    numbers = np.random.default_rng(2).integers(0, 20, N_IDS).astype(row_type)
    whole, more = rows[numbers], {}
    if factor_type is not None:
        factors = np.random.default_rng(3).random(N_IDS).astype(factor_type)
        whole, more = whole * factors.astype(np.float32)[:, None], {"weights": factors}
    folded = saved(tmp_path / "a", embeddings=rows, mapping=numbers, **more)
    plain = saved(tmp_path / "b", embeddings=whole)
    expected = vectors(tmp_path / "b", plain, precision)
    for one, other in zip(vectors(tmp_path / "a", folded, precision), expected, strict=True):
        assert np.array_equal(one, other)


def test_factors_alone(tmp_path: Path) -> None:
    """A file may have factors without row numbers."""
    factors = np.linspace(0, 2, N_IDS, dtype=np.float32)
    weighted = saved(tmp_path / "a", embeddings=table(), weights=factors)
    plain = saved(tmp_path / "b", embeddings=table() * factors[:, None])
    expected = vectors(tmp_path / "b", plain)
    for one, other in zip(vectors(tmp_path / "a", weighted), expected, strict=True):
        assert np.array_equal(one, other)


def test_name_of_static_embedding(tmp_path: Path) -> None:
    """The table may have the name that sentence-transformers gives it."""
    one = saved(tmp_path / "a", embeddings=table())
    other = saved(tmp_path / "b", embedding__weight=table())
    for a, b in zip(vectors(tmp_path / "a", one), vectors(tmp_path / "b", other), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mapping": np.full(N_IDS, 20)}, r"row numbers from 20 to 20.*has 20 rows"),
        ({"mapping": np.full(N_IDS, -1)}, r"row numbers from -1 to -1"),
        ({"mapping": np.zeros((N_IDS, 1), np.int64)}, r"'mapping' has the shape \(68, 1\)"),
        ({"mapping": np.zeros(N_IDS, np.float32)}, r"'mapping' is F32; row numbers must be"),
        ({"mapping": np.zeros(N_IDS - 1, np.int64)}, r"ids up to 67, but .* has 67 rows"),
        ({"mapping": np.zeros(N_IDS, np.int64), "weights": np.ones(20)}, "has 20 entries, but"),
        (
            {"mapping": np.zeros(N_IDS, np.int64), "weights": np.full(N_IDS, 1e300)},
            "NaN or infinity",
        ),
        ({"bias": np.ones(HIDDEN, np.float32)}, r"has 'bias', which.*no place"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    """Row numbers and factors of another table are refused, and so is any other tensor."""
    model = saved(tmp_path, embeddings=table(20), **tensors)
    with pytest.raises(CheckpointMismatch, match=message):
        build_tiny(tmp_path, model)


def test_rows_are_read_in_pieces(tmp_path: Path) -> None:
    """Some rows of the folded table equal the same rows of all of it."""
    from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint

    numbers = np.random.default_rng(2).integers(0, 20, N_IDS)
    tensors: Any = {"embeddings": table(20), "mapping": numbers, "weights": np.ones(N_IDS)}
    save_tensors(tensors, tmp_path / "m.safetensors")
    config = model2vec.Config(hidden_size=HIDDEN, vocab_size=N_IDS)
    weights = model2vec.bind(SafetensorsCheckpoint(tmp_path / "m.safetensors"), config)
    whole = weights.read("word_embeddings", (N_IDS, HIDDEN))
    assert np.array_equal(whole, table(20)[numbers])
    some = weights.read("word_embeddings", (N_IDS, HIDDEN), slice(5, 9))
    assert np.array_equal(some, whole[5:9])


def load_static(tmp_path: Path, *keys: str) -> OnnxEngine:
    """A static model with these keys in the manifest's `[tokenizer]`."""
    lines = "\n".join(keys)
    model = make_model(tmp_path, "model2vec", max_tokens=1_000_000, tokenizer=lines)
    return load_tiny(model, build_tiny(tmp_path, model))


def test_tokens_of_a_static_table(tmp_path: Path) -> None:
    """A text has its own tokens alone, without unknown ones, and no limit but the manifest's."""
    engine = load_static(tmp_path, "add_special_tokens = false", "drop_unknown = true")
    blue, blank, unknown = engine.tokenize(["the \u2603 blue", " ", "\u2603"])
    assert blue.ids.tolist() == [4, 7]
    assert (blue.n_dropped, blank.n_dropped, unknown.n_dropped) == (1, 0, 1)
    assert not len(blank.ids)
    assert not len(unknown.ids)
    (vector,) = engine.embed([blue.ids], [HIDDEN]).embeddings
    expected = (table()[4] + table()[7]) / 2
    assert np.abs(vector - expected / np.sqrt(expected @ expected)).max() < 1e-6


def test_texts_without_a_token(tmp_path: Path) -> None:
    """A text without a token has a vector of zeros, and changes no other vector of its batch."""
    engine = load_static(tmp_path, "add_special_tokens = false")
    nothing, text = np.empty(0, np.int64), np.arange(4, 20)
    (alone,) = engine.embed([text], [HIDDEN]).embeddings
    zeros, vector, short = engine.embed([nothing, text, nothing], [HIDDEN, HIDDEN, 5]).embeddings
    assert np.array_equal(vector, alone)
    assert np.array_equal(zeros, np.zeros(HIDDEN, np.float32))
    assert np.array_equal(short, np.zeros(5, np.float32))
    result = engine.embed([nothing], [HIDDEN])
    assert np.array_equal(result.embeddings[0], zeros)
    assert result.inference_s == 0
    assert engine.hidden_states(nothing).shape == (0, HIDDEN)


def test_special_tokens_without_rows(tmp_path: Path) -> None:
    """A tokenizer whose special tokens have no rows fits a model that does not add them."""
    model = make_model(tmp_path, "model2vec")
    path = model.checkpoint / "tokenizer.json"
    before = path.read_text()
    # [SEP] gets an id behind the last row, where text never comes upon it.
    text = before.replace('"ids":[3]', '"ids":[99]').replace(
        '"ids": [\n          3', '"ids": [\n 99'
    )
    assert text != before
    path.write_text(text)
    toml = model.models / model.id / "model.toml"
    from matryo.store.files import sha256_file

    (old,) = [
        line.split('"')[3] for line in toml.read_text().splitlines() if "tokenizer.json" in line
    ]
    toml.write_text(toml.read_text().replace(old, sha256_file(path)))
    with pytest.raises(CheckpointMismatch, match="ids up to 99"):
        build_tiny(tmp_path, model)
    toml.write_text(
        toml.read_text().replace("max_tokens = 64", "max_tokens = 64\nadd_special_tokens = false")
    )
    assert build_tiny(tmp_path, model).graph.is_file()
