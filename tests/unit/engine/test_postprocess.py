"""The output steps give the vectors of float64 loops, and no row depends on another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.catalog.manifest import Dimensions, Output
from matryo.engine.onnx.padding import pad
from matryo.engine.postprocess import l2_normalize, layer_norm, mean_pool, postprocess
from tests.reference import pooled

NATIVE = 24


def output(*, norm: bool) -> Output:
    """The output steps of a manifest, with or without the layer norm."""
    return Output(
        steps=("mean_pool", "layer_norm", "truncate", "l2_normalize")
        if norm
        else ("mean_pool", "truncate", "l2_normalize"),
        layer_norm_eps=1e-5 if norm else None,
        dimensions=Dimensions(native=NATIVE, trained=(NATIVE,), cut=True),
    )


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, NATIVE), min_size=8, max_size=8),
    norm=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_steps_match_loops(lengths: list[int], sizes: list[int], norm: bool, seed: int) -> None:
    """Any mix of lengths and output sizes gives the vectors of the float64 loops, of length 1."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    hidden = rng.standard_normal((*mask.shape, NATIVE), dtype=np.float32)
    hidden[mask == 0] = np.nan  # what stands at padding must not matter
    out = output(norm=norm)
    vectors = postprocess(hidden, mask, sizes[: len(lengths)], out)
    for row, (length, size) in enumerate(zip(lengths, sizes, strict=False)):
        expected = pooled(
            hidden[row, :length].astype(np.float64),
            layer_norm_eps=out.layer_norm_eps,
            dimensions=size,
        )
        assert vectors[row].dtype == np.float32
        assert vectors[row].shape == (size,)
        assert np.abs(vectors[row] - expected).max() < 2e-5
        assert abs(float(np.linalg.norm(vectors[row])) - 1) < 1e-6


def test_cls_pool() -> None:
    """With cls pooling only the first token's state shapes the vector."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, 7, NATIVE), dtype=np.float32)
    hidden[1, 4:] = np.nan
    mask = np.ones((3, 7), np.int64)
    mask[1, 4:] = 0
    out = Output(
        steps=("cls_pool", "truncate", "l2_normalize"),
        dimensions=Dimensions(native=NATIVE, trained=(NATIVE,), cut=True),
    )
    for row, vector in enumerate(postprocess(hidden, mask, [NATIVE, 5, 1], out)):
        first = hidden[row, 0, : len(vector)]
        assert np.abs(vector - first / np.linalg.norm(first)).max() < 1e-6


@given(
    length=st.integers(1, 64),
    padding=st.integers(0, 64),
    company=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_do_not_see_each_other(length: int, padding: int, company: int, seed: int) -> None:
    """A row's vector has the same bits alone and in any batch, with any padding."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((1, length, 32), dtype=np.float32)
    (alone,) = postprocess(own, np.ones((1, length), np.int64), [20], output(norm=True))

    width = length + padding
    hidden = rng.standard_normal((company + 1, width, 32), dtype=np.float32)
    mask = np.ones((company + 1, width), np.int64)
    hidden[company, :length] = own
    mask[company, length:] = 0
    together = postprocess(hidden, mask, [7] * company + [20], output(norm=True))
    assert np.array_equal(together[company], alone)


def test_order_of_the_steps_matters() -> None:
    """The layer norm runs before the vector is truncated; the other order gives another vector."""
    hidden = np.random.default_rng(0).standard_normal((1, 3, NATIVE), dtype=np.float32) + 1
    mask = np.ones((1, 3), np.int64)
    (right,) = postprocess(hidden, mask, [8], output(norm=True))
    wrong = l2_normalize(layer_norm(mean_pool(hidden, mask)[:, :8], 1e-5))[0]
    assert np.abs(right - wrong).max() > 0.01


def test_zeros_stay_finite() -> None:
    """A hidden state of zeros gives a vector of zeros, not NaN."""
    zeros = np.zeros((1, 4), np.float32)
    assert np.array_equal(l2_normalize(zeros), zeros)
    assert np.isfinite(layer_norm(zeros, 1e-5)).all()


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=9))
def test_padding(texts: list[list[int]]) -> None:
    """Padding keeps the index of every token, and padding is 0 in the ids and in the mask."""
    batch = pad([np.array(text) for text in texts])
    for row, text in enumerate(texts):
        assert batch.input_ids[row, : len(text)].tolist() == text
        assert not batch.input_ids[row, len(text) :].any()
        assert batch.attention_mask[row].tolist() == [1] * len(text) + [0] * (
            batch.input_ids.shape[1] - len(text)
        )
    assert batch.n_padding == batch.input_ids.size - sum(map(len, texts))


@pytest.mark.parametrize("steps", [("truncate", "mean_pool", "l2_normalize"), ("mean_pool",)])
def test_steps_in_another_order_are_refused(steps: tuple[str, ...]) -> None:
    """A manifest with another order of steps is refused."""
    with pytest.raises(ValueError, match="in this order"):
        Output.model_validate(
            {"steps": steps, "dimensions": Dimensions(native=1, trained=(1,), cut=True)}
        )
