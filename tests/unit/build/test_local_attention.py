"""Local attention in blocks: the right vectors at every length, in any company, in little memory."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from matryo.core.choices import PRECISIONS, Precision
from tests.checkpoints import HEADS, make_model
from tests.conftest import build_tiny, load_tiny
from tests.reference import hidden_states, pooled

LENGTHS = (1, 2, 15, 31, 63, 64, 65, 127, 128, 129, 192, 193, 512, 513, 1100)


@pytest.mark.parametrize("window", [2, 3, 16, 128])
def test_vectors_match_the_reference(tmp_path: Path, window: int) -> None:
    """Texts that end before, at and after the end of a block have the vectors of float64 loops."""
    model = make_model(tmp_path, "modernbert", max_tokens=1200, local_attention=window)
    engine = load_tiny(model, build_tiny(tmp_path, model))
    half = window // 2
    lengths = sorted({half, half + 1, window, window + 1, 2 * window, 2 * window + half})
    for n_tokens in lengths:
        ids = np.random.default_rng(n_tokens).integers(4, model.config["vocab_size"], n_tokens)
        (vector,) = engine.embed([ids], [32]).embeddings
        hidden = hidden_states(model.config, model.tensors, ids.tolist())
        expected = pooled(hidden, layer_norm_eps=None, dimensions=32)
        assert np.abs(vector - expected).max() < 1e-5, n_tokens


@pytest.mark.parametrize("precision", PRECISIONS)
def test_alone_as_in_any_batch(tmp_path: Path, precision: Precision) -> None:
    """A text has the same bits in a run of short texts without blocks and in a run with blocks."""
    model = make_model(tmp_path, "modernbert", max_tokens=1200, local_attention=128)
    engine = load_tiny(model, build_tiny(tmp_path, model, precision), threads=2)
    texts = [np.random.default_rng(n).integers(4, 60, n) for n in LENGTHS]
    alone = [engine.embed([text], [32]).embeddings[0] for text in texts]
    rng = np.random.default_rng(0)
    batches = [[0, i] for i in range(1, len(texts))]
    batches += [list(rng.permutation(len(texts))[: rng.integers(2, 10)]) for _ in range(6)]
    for order in batches:
        together = engine.embed([texts[i] for i in order], [32] * len(order)).embeddings
        for vector, i in zip(together, order, strict=True):
            assert np.array_equal(vector, alone[i]), (len(texts[i]), [LENGTHS[j] for j in order])


def test_far_tokens_change_nothing(tmp_path: Path) -> None:
    """In a model of one local layer, a token's state depends on near tokens only, bit for bit."""
    model = make_model(
        tmp_path,
        "modernbert",
        max_tokens=1200,
        local_attention=128,
        num_hidden_layers=1,
        layer_types=["sliding_attention"],
    )
    engine = load_tiny(model, build_tiny(tmp_path, model))
    ids = np.random.default_rng(0).integers(4, 60, 400)
    other = ids.copy()
    other[200] = ids[200] % 56 + 4
    assert other[200] != ids[200]
    one, two = (engine.hidden_states(text) for text in (ids, other))
    changed = np.flatnonzero((one != two).any(-1))
    assert (changed.min(), changed.max()) == (200 - 64, 200 + 64)


def test_memory_grows_with_the_length(tmp_path: Path) -> None:
    """A text of 8192 tokens needs no score of every pair of tokens, which would be 1 GiB."""
    model = make_model(
        tmp_path,
        "modernbert",
        max_tokens=8192,
        local_attention=128,
        max_position_embeddings=8192,
        num_hidden_layers=1,
        layer_types=["sliding_attention"],
    )
    engine = load_tiny(model, build_tiny(tmp_path, model))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine.embed([np.random.default_rng(0).integers(4, 60, 8192)], [32])
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < HEADS * 8192**2 * 4 / 1024 / 4
