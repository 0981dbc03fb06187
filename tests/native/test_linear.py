"""Linear layers of matryo-native against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import reference
from tests.native.operators import ACTIVATIONS, Floats, Layer, Numbers, make_layer, run

ROWS = st.one_of(st.sampled_from([0, 1, 47, 48, 49, 96, 130]), st.integers(1, 130))
WIDTHS = st.one_of(
    st.sampled_from([1, 7, 8, 16, 191, 192, 193, 200, 384, 400]), st.integers(1, 450)
)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, Floats, Floats | None]:
    """A layer, its input, and a residual or None."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, columns = draw(WIDTHS), draw(st.one_of(st.integers(1, 70), st.sampled_from([16, 64])))
    layer = make_layer(
        rng,
        draw(st.sampled_from(["bytes", "words", "floats"])),
        k,
        columns,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        bias=draw(st.booleans()),
        channels=draw(st.booleans()),
        zero_point=draw(st.sampled_from([128, 32, 1, 254])),
    )
    rows = draw(ROWS)
    size = np.float32(10 ** draw(st.integers(-3, 2)))
    x = rng.standard_normal((rows, k)).astype(np.float32) * size
    residual = rng.standard_normal((rows, columns)).astype(np.float32)
    return layer, x, residual if draw(st.booleans()) else None


@settings(max_examples=300)
@given(layers())
def test_a_layer_gives_what_numpy_gives(case: tuple[Layer, Floats, Floats | None]) -> None:
    """Every layer is near the reference; without floats that are added, it gives the same bits."""
    layer, x, residual = case
    y = layer.run(x, residual)
    expected = reference.linear(layer, x, residual)
    assert y.shape == (len(x), layer.columns)
    if layer.numbers != "floats" and len(layer.scales) == 1 and layer.activation == "none":
        np.testing.assert_array_equal(y, expected)
        return
    size = np.abs(reference.products(layer, x)).max(initial=1)
    # A gate's result is a product of two numbers of that size.
    tolerance = 4e-6 * size ** (2 if layer.gated else 1)
    np.testing.assert_allclose(y, expected, rtol=4e-6, atol=tolerance)


@settings(max_examples=100)
@given(layers(), st.data())
def test_a_row_has_the_same_bits_in_any_company(
    case: tuple[Layer, Floats, Floats | None], data: st.DataObject
) -> None:
    """A row has the same bits alone as among others, with one thread and with three."""
    layer, x, residual = case
    together = layer.run(x, residual)
    assert together.tobytes() == layer.run(x, residual, threads=3).tobytes()
    if len(x):
        row = data.draw(st.integers(0, len(x) - 1))
        of_row = None if residual is None else residual[row : row + 1]
        alone = layer.run(x[row : row + 1], of_row, threads=data.draw(st.sampled_from([1, 3])))
        assert alone[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("k", [1, 100, 192, 768, 3072])
@pytest.mark.parametrize("fill", ["low", "high", "both", "mixed"])
@pytest.mark.parametrize("kind", ["normal", "equal", "sparse"])
def test_sums_of_16_bits_never_wrap(k: int, fill: str, kind: str) -> None:
    """Activations of 0 and 255 alone, the worst ones, still give exact sums."""
    rng = np.random.default_rng(k)
    weights = {
        "normal": rng.standard_normal((48, k)),
        "equal": np.sign(rng.standard_normal((48, 1))) * np.ones((48, k)),
        "sparse": rng.standard_normal((48, k)) * (rng.random((48, k)) < 0.1),
    }[kind].astype(np.float32)
    layer = make_layer(rng, "bytes", k, 48, zero_point=127, weights=weights)
    signs = {"low": -127, "high": 128}.get(fill, rng.choice([-127, 128], (20, k)))
    x = np.broadcast_to(np.float32(signs), (20, k)).copy()
    if fill == "both":
        # The sign of each weight of one column makes every product of that column positive.
        x[:10] = np.where(layer.panels[0, 0] > 0, np.float32(128), np.float32(-127))
        x[10:] = np.where(layer.panels[0, 0] > 0, np.float32(-127), np.float32(128))
    values, _ = reference.rounded(layer, x)
    assert np.isin(np.concatenate(values, 1), [-127, 128]).mean() > 0.99
    np.testing.assert_allclose(
        layer.run(x),
        reference.linear(layer, x),
        rtol=1e-6,
        atol=float(np.abs(x @ weights.T).max()) * 1e-6,
    )


@pytest.mark.parametrize("numbers", ["bytes", "words", "floats"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [8, 100, 192, 500])
@pytest.mark.parametrize("channels", [False, True])
def test_what_is_not_finite_gives_nothing_finite(
    numbers: Numbers, activation: str, value: float, k: int, channels: bool
) -> None:
    """One entry that is not finite, at any column, leaves no number in its row, and no other."""
    rng = np.random.default_rng(0)
    layer = make_layer(rng, numbers, k, 40, activation=activation, bias=True, channels=channels)
    x = rng.standard_normal((k + 1, k)).astype(np.float32)
    np.fill_diagonal(x, value)  # row i at column i; the last row has numbers alone
    y = layer.run(x)
    assert not np.isfinite(y[:k]).any()
    assert np.isfinite(y[k:]).all()


def test_numbers_of_every_size_stay_numbers() -> None:
    """Rows of the smallest and the largest numbers, and rows of 0, give finite results."""
    rng = np.random.default_rng(0)
    sizes = np.array([0, 1e-45, 1e-38, 1e-30, 1e-20, 1, 1e20, 1e30], np.float32)
    x = rng.uniform(-1, 1, (len(sizes), 200)).astype(np.float32) * sizes[:, None]
    for numbers in ("bytes", "words", "floats"):
        for activation in ("none", "gelu"):
            assert np.isfinite(
                make_layer(rng, numbers, 200, 20, activation=activation).run(x)
            ).all()


@pytest.mark.parametrize("numbers", ["bytes", "words", "floats"])
def test_weights_need_no_alignment(numbers: Numbers) -> None:
    """Weights at any address that their type allows give the same bits."""
    rng = np.random.default_rng(0)
    layer, x = make_layer(rng, numbers, 64, 32, bias=True), rng.standard_normal((9, 64), np.float32)
    op, inputs, attributes = layer.call(x)
    for shift in range(1, 17):
        moved = [at_odd_address(part, shift) for part in inputs]
        assert run(op, moved, attributes).tobytes() == layer.run(x).tobytes()


def at_odd_address(array: Any, shift: int) -> Any:
    """A copy of an array, `shift` elements beyond an address that 64 divides; None of None."""
    if array is None:
        return None
    memory = np.empty(array.nbytes + 128 + shift * array.itemsize, np.uint8)
    start = -memory.ctypes.data % 64 + shift * array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
