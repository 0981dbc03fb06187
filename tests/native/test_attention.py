"""Attention of matryo-native against numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import reference
from tests.native.operators import Floats, attention, make_rotary


@dataclass(frozen=True)
class Case:
    """Texts and the shape of the heads."""

    qkv: Floats
    lengths: list[int]
    num_heads: int
    floats: bool
    rotary: tuple[Floats, Floats] | None

    def run(self, threads: int = 1) -> Floats:
        """All texts in one call."""
        return attention(
            self.qkv,
            self.lengths,
            num_heads=self.num_heads,
            floats=self.floats,
            rotary=self.rotary,
            threads=threads,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Texts of 0 to 300 tokens, of any size of head."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rotary = draw(st.booleans())
    size = draw(st.sampled_from([32, 64, 128, 256] if rotary else [16, 32, 48, 64, 80, 256]))
    heads = draw(st.integers(1, 3))
    length = st.one_of(
        st.sampled_from([0, 1, 15, 16, 17, 63, 64, 65, 120, 121]), st.integers(0, 300)
    )
    lengths = draw(st.lists(length, max_size=5))
    qkv = rng.standard_normal((sum(lengths), 3 * heads * size)).astype(np.float32)
    qkv *= np.float32(draw(st.sampled_from([0.01, 1, 3])))
    tables = make_rotary(max(lengths, default=0) + draw(st.integers(0, 9)), size)
    return Case(qkv, lengths, heads, draw(st.booleans()), tables if rotary else None)


@settings(max_examples=200)
@given(cases())
def test_attention_gives_what_numpy_gives(case: Case) -> None:
    """The result is the reference's, within what the rounding of scores and values allows."""
    y = case.run()
    expected = reference.attention(
        case.qkv, case.lengths, num_heads=case.num_heads, rotary=case.rotary
    )
    size = float(np.abs(case.qkv).max(initial=0))
    assert y.shape == expected.shape
    # Larger queries and keys make scores that are rounded more coarsely.
    tolerance = (2e-5 if case.floats else 2e-3) * size * max(1, size / 3)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)


@settings(max_examples=100)
@given(cases())
def test_a_text_has_the_same_bits_in_any_company(case: Case) -> None:
    """A text has the same bits alone as among others, with one thread and with three."""
    together = case.run()
    assert together.tobytes() == case.run(threads=3).tobytes()
    start = 0
    for n in case.lengths:
        rows = slice(start, start + n)
        alone = Case(case.qkv[rows], [n], case.num_heads, case.floats, case.rotary).run(threads=3)
        assert alone.tobytes() == together[rows].tobytes()
        start += n


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("rotated", [False, True])
def test_what_is_not_finite_gives_nothing_finite(
    floats: bool, value: float, part: str, rotated: bool
) -> None:
    """A query that is not finite leaves no number in its row, a key or value none in its head.

    Other heads and other texts keep their numbers.
    """
    rng = np.random.default_rng(0)
    size, at = 64, ("query", "key", "value").index(part)
    rotary = make_rotary(150, size) if rotated else None
    for token in (0, 1, 63, 64, 149):
        for entry in (0, 1, 17, 63):
            qkv = rng.standard_normal((170, 3 * 2 * size)).astype(np.float32)
            qkv[token, at * 2 * size + entry] = value
            y = attention(qkv, [150, 20], num_heads=2, floats=floats, rotary=rotary)
            hit = y[:150, :size] if part != "query" else y[token, :size]
            assert not np.isfinite(hit).any(), (token, entry)
            assert np.isfinite(y[:, size:]).all()
            assert np.isfinite(y[150:]).all()


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e3, 1e5, 1e7])
def test_scores_of_every_size_choose_the_right_values(floats: bool, size: float) -> None:
    """However large the scores are, a result is within the values, and equal keys share evenly."""
    rng = np.random.default_rng(0)
    heads = rng.standard_normal((130, 3, 64)).astype(np.float32)
    heads[:, :2] *= np.float32(size)
    heads[:, 1] = heads[0, 1]  # every key is the same
    heads[:, 2] = np.float32(1)
    y = attention(heads.reshape(130, -1), [130], num_heads=1, floats=floats, scale=1)
    np.testing.assert_allclose(y, 1, rtol=2e-3)


def test_scores_far_below_zero_count_as_numbers() -> None:
    """Scores below -1e30 still choose among keys, and the lanes after the last key do not count."""
    qkv = np.zeros((3, 3, 16), np.float32)
    qkv[:, 0, 0], qkv[:, 1, 0], qkv[:, 2] = -3e15, 3e15, 2
    y = attention(qkv.reshape(3, -1), [3], num_heads=1, floats=True, scale=1)
    np.testing.assert_allclose(y, 2, rtol=1e-6)
