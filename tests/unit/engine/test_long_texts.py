"""Texts over the trained length use dynamic NTK, by the text's own length alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.build import arch
from matryo.catalog.catalog import Catalog
from matryo.catalog.reading import read_manifest
from matryo.core.errors import UnsupportedArchitecture
from matryo.engine.onnx import OnnxEngine
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.reference import hidden_states

TRAINED = 512


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyModel, OnnxEngine, OnnxEngine]:
    """A model without and with dynamic NTK, with the same weights."""

    def make(**changes: Any) -> tuple[TinyModel, OnnxEngine]:
        root = tmp_path_factory.mktemp("ntk")
        changes["max_trained_positions"] = TRAINED
        model = make_model(root, "nomic_bert", max_tokens=1200, **changes)
        return model, load_tiny(model, build_tiny(root, model))

    _, plain = make()
    model, stretched = make(rotary_scaling_factor=2.0)
    return model, plain, stretched


def text_of(n_tokens: int) -> Any:
    """A random text."""
    return np.random.default_rng(n_tokens).integers(4, 60, n_tokens)


@pytest.mark.parametrize("n_tokens", [TRAINED, TRAINED + 1, 700, 1200])
def test_matches_the_reference(
    engines: tuple[TinyModel, OnnxEngine, OnnxEngine], n_tokens: int
) -> None:
    """The rotary base grows with the text's length, and only over the trained length."""
    model, plain, stretched = engines
    ids = text_of(n_tokens)
    expected = hidden_states(model.config, model.tensors, ids.tolist())
    assert np.abs(stretched.hidden_states(ids) - expected).max() < 1e-4
    moved = float(np.abs(plain.hidden_states(ids) - expected).max())
    assert moved > 1e-3 if n_tokens > TRAINED else moved < 1e-4


def test_short_texts_are_untouched(engines: tuple[TinyModel, OnnxEngine, OnnxEngine]) -> None:
    """Up to the trained length, vectors have the bits of a model without NTK."""
    _, plain, stretched = engines
    for n_tokens in (1, 7, 300, TRAINED):
        ids = text_of(n_tokens)
        assert np.array_equal(plain.hidden_states(ids), stretched.hidden_states(ids))


def test_stateless(engines: tuple[TinyModel, OnnxEngine, OnnxEngine]) -> None:
    """A long text changes neither the vectors of its batch nor of later batches."""
    _, _, stretched = engines
    texts = [text_of(n) for n in (5, 1200, 100, 700, 512)]
    alone = [stretched.embed([text], [32]).embeddings[0] for text in texts]
    again = stretched.embed(texts, [32] * 5).embeddings
    assert all(map(np.array_equal, alone, again))


def test_trained_length_below_a_batch(tmp_path: Path) -> None:
    """A trained length below SOLO_TOKENS is refused, since a stretched text must run alone."""
    model = make_model(
        tmp_path, "nomic_bert", max_trained_positions=TRAINED - 1, rotary_scaling_factor=2.0
    )
    with pytest.raises(UnsupportedArchitecture, match="must be at least 512"):
        arch.load(read_manifest(model.models / model.id))


def test_the_setting(tmp_path: Path) -> None:
    """MATRYO_ROTARY_SCALING_FACTOR changes rotary models only, and is part of their key."""
    make_model(tmp_path, "nomic_bert", model_id="nomic_bert", max_trained_positions=600)
    make_model(tmp_path, "bert", model_id="bert")
    plain = Catalog([tmp_path / "models"])
    stretched = Catalog([tmp_path / "models"], rotary_scaling_factor=2.0)
    assert stretched.manifest("nomic_bert").output_key != plain.manifest("nomic_bert").output_key
    assert stretched.manifest("bert").output_key == plain.manifest("bert").output_key
    _, config = arch.load(stretched.manifest("nomic_bert"))
    assert config.model_dump()["rotary_scaling_factor"] == 2.0
