"""Causal attention in graphs of `qwen3`: any batch, the longest text, and the names of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matryo.build import arch
from matryo.catalog.reading import read_manifest
from matryo.core.choices import PRECISIONS, Precision
from matryo.core.errors import CheckpointMismatch, UnsupportedArchitecture
from tests.checkpoints import make_model
from tests.conftest import build_tiny, load_tiny
from tests.unit.build.test_graphs import rewritten


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_last_rows_of_tiles(tmp_path: Path, head_dim: int, precision: Precision) -> None:
    """A text that is longer than tiles of rows by one has the same bits in any batch."""
    model = make_model(tmp_path, "qwen3", head_dim=head_dim)
    engine = load_tiny(model, build_tiny(tmp_path, model, precision), threads=2)
    lengths = [1, 17, 33, 65, 97, 129, 257, 385]
    texts = [np.random.default_rng(n).integers(4, 60, n) for n in lengths]
    alone = [engine.embed([text], [32]).embeddings[0] for text in texts]
    for longest in (386, 411, 512):
        company = np.random.default_rng(longest).integers(4, 60, longest)
        together = engine.embed([*texts, company], [32] * (len(texts) + 1)).embeddings
        for vector, expected, length in zip(together, alone, lengths, strict=False):
            assert np.array_equal(vector, expected), (length, longest)


@pytest.mark.parametrize("longest", [511, 600, 601])
def test_the_longest_text(tmp_path: Path, longest: int) -> None:
    """A text may have every position of the model, whether their number is odd or even."""
    model = make_model(tmp_path, "qwen3", max_tokens=longest, max_position_embeddings=longest)
    engine = load_tiny(model, build_tiny(tmp_path, model))
    text = np.random.default_rng(0).integers(4, 60, longest)
    whole = engine.hidden_states(text)
    start = engine.hidden_states(text[:20])
    assert np.abs(whole[:20] - start).max() < 1e-5  # no token attends to later ones


def test_names_of_a_language_model(tmp_path: Path) -> None:
    """A file whose names begin with `model.` is read, and its head is left out."""
    model = make_model(tmp_path, "qwen3")
    expected = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
    prefixed = {f"model.{name}": tensor for name, tensor in model.tensors.items()}
    prefixed["lm_head.weight"] = np.zeros((68, 32), np.float32)
    rewritten(tmp_path, model, prefixed)
    found = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
    assert np.array_equal(found.embeddings[0], expected.embeddings[0])


def test_a_bias_has_no_place(tmp_path: Path) -> None:
    """A bias of attention, which the graph would leave out, is refused."""
    model = make_model(tmp_path, "qwen3")
    bias = {"layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    rewritten(tmp_path, model, model.tensors | bias)
    with pytest.raises(CheckpointMismatch, match=r"q_proj\.bias.*no place"):
        build_tiny(tmp_path, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads = 3"),
        ({"head_dim": 15}, "head_dim is 15, but must be even"),
        ({"hidden_act": "gelu"}, "architecture.hidden_act"),
    ],
)
def test_configs_without_a_graph(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """A config that the graph does not compute is refused before the build begins."""
    path = make_model(tmp_path, "qwen3").models / "tiny/model.toml"
    for key, value in changes.items():
        lines = path.read_text().splitlines()
        written = f'"{value}"' if isinstance(value, str) else str(value)
        lines = [f"{key} = {written}" if line.startswith(f"{key} =") else line for line in lines]
        path.write_text("\n".join(lines))
    with pytest.raises(UnsupportedArchitecture) as caught:
        arch.load(read_manifest(path.parent))
    assert message in caught.value.message


def test_hidden_states_of_any_size(tmp_path: Path) -> None:
    """The check of a build allows for the size of hidden states, which a decoder's norm sets."""
    model = make_model(tmp_path, "qwen3")
    large = {"norm.weight": model.tensors["norm.weight"] * 1000}
    rewritten(tmp_path, model, model.tensors | large)
    assert build_tiny(tmp_path, model).record.max_abs_error < 1e-4
