"""The output steps give the vectors of float64 loops, and no row depends on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.catalog.output import Activation, DenseSpec, Dimensions, Output, Pool
from matryo.engine.dense import DenseLayer, load_dense, save_dense
from matryo.engine.onnx.padding import pad
from matryo.engine.postprocess import l2_normalize, layer_norm, max_pool, mean_pool, postprocess
from tests.reference import pooled

NATIVE = 24
POOLS: tuple[Pool, ...] = get_args(Pool)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True)
class Steps:
    """Any output steps, with the weights of their dense layers."""

    output: Output
    layers: tuple[DenseLayer, ...]
    hidden_size: int

    @property
    def plain_layers(self) -> list[Any]:
        """The layers as the float64 loops take them."""
        return [(layer.weight, layer.bias, layer.activation) for layer in self.layers]


@st.composite
def any_steps(draw: st.DrawFn) -> Steps:
    """Pools, and any steps between them and the cut; widths need not suit SIMD registers."""
    hidden_size = draw(st.integers(1, 19))
    pools = draw(st.lists(st.sampled_from(POOLS), min_size=1, max_size=7))
    between: list[Any] = draw(
        st.lists(st.sampled_from(("dense", "layer_norm", "l2_normalize")), max_size=4)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = hidden_size * len(pools)
    specs: list[DenseSpec] = []
    layers: list[DenseLayer] = []
    for step in between:
        if step == "dense":
            out, bias = draw(st.integers(1, 19)), draw(st.booleans())
            activation = draw(st.sampled_from(ACTIVATIONS))
            specs.append(
                DenseSpec(
                    file="d.safetensors",
                    in_features=width,
                    out_features=out,
                    bias=bias,
                    activation=activation,
                )
            )
            weight = rng.standard_normal((out, width), dtype=np.float32)
            shift = rng.standard_normal(out, dtype=np.float32) if bias else None
            layers.append(DenseLayer(weight, shift, activation))
            width = out
    output = Output(
        steps=(*pools, *between, "truncate", "l2_normalize"),
        layer_norm_eps=0.1 if "layer_norm" in between else None,
        dense=tuple(specs),
        dimensions=Dimensions(native=width, trained=(width,), cut=True),
    )
    return Steps(output, tuple(layers), hidden_size)


@given(
    steps=any_steps(),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    size=st.integers(1, 19),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_steps_match_loops_and_the_text_alone(
    steps: Steps, lengths: list[int], size: int, seed: int
) -> None:
    """Any steps give the float64 loops' vectors, with the same bits alone and in any batch."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    hidden = rng.standard_normal((*mask.shape, steps.hidden_size), dtype=np.float32)
    hidden[rng.random(hidden.shape) < 0.2] = -0.0
    hidden[mask == 0] = np.nan
    size = min(size, steps.output.dimensions.native)
    vectors = postprocess(hidden, mask, [size] * len(lengths), steps.output, steps.layers)
    for row, length in enumerate(lengths):
        own = hidden[row : row + 1, :length].copy()
        (alone,) = postprocess(
            own, np.ones((1, length), np.int64), [size], steps.output, steps.layers
        )
        assert alone.tobytes() == vectors[row].tobytes()
        assert vectors[row].dtype == np.float32
        whole = pooled(
            own[0].astype(np.float64),
            layer_norm_eps=steps.output.layer_norm_eps,
            dimensions=steps.output.dimensions.native,
            pools=steps.output.pools,
            between=steps.output.between,
            layers=steps.plain_layers,
        )
        # The cut may leave little but rounding, whose direction no tolerance covers.
        if (norm := np.linalg.norm(whole[:size])) > 0.05:
            assert np.abs(vectors[row] - whole[:size] / norm).max() < 1e-4


def test_pools_are_joined_in_their_order() -> None:
    """Two pools give both results, in the order of the steps."""
    hidden = np.array([[[1.0, 2.0], [3.0, 0.0]]], np.float32)
    steps: Sequence[Any] = ("max_pool", "cls_pool", "truncate", "l2_normalize")
    out = Output(steps=tuple(steps), dimensions=Dimensions(native=4, trained=(4,), cut=True))
    (vector,) = postprocess(hidden, np.ones((1, 2), np.int64), [4], out)
    assert np.allclose(vector, np.array([3, 2, 1, 2]) / np.sqrt(18))


def test_the_largest_zero_has_no_sign() -> None:
    """The sign of a zero does not depend on the order in which the values are compared."""
    zeros = np.array([[[-0.0], [0.0]], [[0.0], [-0.0]]], np.float32)
    assert not np.signbit(max_pool(zeros, np.ones((2, 2), np.int64))).any()
    assert not np.signbit(max_pool(zeros[:, :1], np.ones((2, 1), np.int64))).any()


def test_dense_file_of_another_model(tmp_path: Path) -> None:
    """A file with other values than the manifest describes is refused with both counts."""
    layer = DenseLayer(np.ones((3, 2), np.float32), np.ones(3, np.float32), "tanh")
    save_dense([layer], tmp_path / "dense.npy")
    spec = DenseSpec(file="d", in_features=2, out_features=3, bias=True, activation="tanh")
    (read,) = load_dense(tmp_path / "dense.npy", [spec])
    assert np.array_equal(read.weight, layer.weight)
    assert read.bias is not None
    assert np.array_equal(read.bias, np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(9,\), but model.toml describes 6 float32"):
        load_dense(tmp_path / "dense.npy", [spec.model_copy(update={"bias": False})])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_the_ends(activation: Activation) -> None:
    """Large components, of either sign, overflow no activation and raise no warning."""
    layer = DenseLayer(np.eye(2, dtype=np.float32), None, activation)
    out = Output(
        steps=("given", "dense", "truncate", "l2_normalize"),
        dense=(DenseSpec(file="d", in_features=2, out_features=2, bias=False, activation="relu"),),
        dimensions=Dimensions(native=2, trained=(2,), cut=True),
    )
    x = np.array([[1e4, -1e4]], np.float32)
    (vector,) = postprocess(x, np.ones((1, 1), np.int64), [2], out, [layer])
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6


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


@pytest.mark.parametrize(
    "steps",
    [
        ("truncate", "mean_pool", "l2_normalize"),
        ("mean_pool",),
        ("truncate", "l2_normalize"),
        ("mean_pool", "l2_normalize"),
        ("mean_pool", "truncate"),
        ("mean_pool", "l2_normalize", "truncate"),
        ("mean_pool", "truncate", "l2_normalize", "l2_normalize"),
        ("l2_normalize", "mean_pool", "truncate", "l2_normalize"),
        ("mean_pool", "l2_normalize", "cls_pool", "truncate", "l2_normalize"),
        ("given", "mean_pool", "truncate", "l2_normalize"),
        ("mean_pool", "given", "truncate", "l2_normalize"),
        ("given", "given", "truncate", "l2_normalize"),
    ],
)
def test_steps_in_another_order_are_refused(steps: tuple[str, ...]) -> None:
    """A manifest with another order of steps is refused."""
    with pytest.raises(ValueError, match="in this order"):
        Output.model_validate(
            {"steps": steps, "dimensions": Dimensions(native=1, trained=(1,), cut=True)}
        )


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    unit=st.lists(st.booleans(), min_size=6, max_size=6),
    steps=any_steps(),
    seed=st.integers(0, 2**32 - 1),
)
def test_without_the_last_step(
    lengths: list[int], unit: list[bool], steps: Steps, seed: int
) -> None:
    """A vector without the last step leads to the unit vector, and changes no other of the batch."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    hidden = rng.standard_normal((*mask.shape, steps.hidden_size), dtype=np.float32)
    sizes = [1 + n % steps.output.dimensions.native for n in range(len(lengths))]
    plain = postprocess(hidden, mask, sizes, steps.output, steps.layers)
    mixed = postprocess(hidden, mask, sizes, steps.output, steps.layers, unit[: len(lengths)])
    for before, after, is_unit in zip(plain, mixed, unit, strict=False):
        assert after.dtype == np.float32
        made = after if is_unit else l2_normalize(after[None])[0]
        assert made.tobytes() == before.tobytes()
        assert after.base is None or is_unit
