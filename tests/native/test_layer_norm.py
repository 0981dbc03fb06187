"""Layer norm of matryo-native against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import reference
from tests.native.operators import layer_norm


@settings(max_examples=100)
@given(
    st.integers(0, 2**32),
    st.integers(0, 130),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from([1e-5, 1e-12]),
)
def test_layer_norm_gives_what_numpy_gives(
    seed: int, rows: int, panels: int, bias: bool, epsilon: float
) -> None:
    """Each row is the reference's, and has the same bits alone and with any number of threads."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, panels * 16)).astype(np.float32) * 3 + np.float32(1)
    scale, shift = rng.standard_normal((2, panels * 16)).astype(np.float32)
    y = layer_norm(x, scale, shift if bias else None, epsilon)
    expected = reference.layer_norm(x, scale, shift if bias else None, epsilon)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert (
        y.tobytes() == layer_norm(x, scale, shift if bias else None, epsilon, threads=3).tobytes()
    )
    for row in range(0, rows, 7):
        alone = layer_norm(x[row : row + 1], scale, shift if bias else None, epsilon)
        assert alone.tobytes() == y[row : row + 1].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_nothing_finite(value: float) -> None:
    """One entry that is not finite leaves no number in its row, and every other row its numbers."""
    x = np.random.default_rng(0).standard_normal((33, 32)).astype(np.float32)
    np.fill_diagonal(x, value)
    y = layer_norm(x, np.ones(32, np.float32), np.ones(32, np.float32))
    assert not np.isfinite(y[:32]).any()
    assert np.isfinite(y[32]).all()
