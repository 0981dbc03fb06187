"""How two sets of vectors of the same texts agree, and what follows from that for an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from matryo.engine.postprocess import FloatArray, l2_normalize

Verdict = Literal["identical", "interchangeable", "close", "scaled", "other type", "different"]

NUMBERS = "float32"
"""The numbers of our own vectors."""
INTEGERS = "integers"
"""JSON numbers without a decimal point."""
DECIMALS = "decimals"
"""Other JSON numbers; float32 values come back from these bit for bit."""

_IDENTICAL = 1e-6
_INTERCHANGEABLE, _CLOSE = 0.999, 0.98
_SAME_LENGTH = 1e-3  # float16 moves a length of 1 by less
_NEIGHBOURS = 10

ADVICE: dict[Verdict, str] = {
    "identical": "the same vectors: one may take the other's place",
    "interchangeable": "they differ by less than can be seen in retrieval: they may share an index",
    "close": "the same model, rounded otherwise: queries of one find documents of the other, but "
    "one index should hold vectors of one kind; embed the documents again when you can",
    "scaled": "the same directions and other lengths: a cosine index finds the same with both, "
    "inner product and Euclidean distance do not; normalise them before they share an index",
    "other type": "the same directions in numbers of another type: an index holds one type; "
    "convert one side, or ask for float",
    "different": "another model, prefix, or processing: never in one index; embed the documents "
    "again",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two sets of vectors of the same texts agree.

    Attributes:
        n_texts: how many.
        dimensions: of one, and of the other.
        numbers: type of the numbers of one, and of the other.
        norms: mean length of the vectors of one, and of the other.
        cosine_mean: of each text's two vectors; None for vectors of two widths.
        cosine_min: the least of them.
        max_abs_difference: of any two components.
        max_length_ratio: largest deviation from 1 of one vector's length over the other's.
        same_neighbours: mean share of the ten nearest texts that both find, 0 to 1, when the
            other's vectors ask among the first's; None for fewer than twelve texts.
        is_shuffled: the vectors agree in another order than they came.
    """

    n_texts: int
    dimensions: tuple[int, int]
    numbers: tuple[str, str]
    norms: tuple[float, float]
    max_abs_difference: float | None = None
    max_length_ratio: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    same_neighbours: float | None = None
    is_shuffled: bool = False

    @property
    def verdict(self) -> Verdict:
        """In one word or two."""
        if (
            self.cosine_min is None
            or self.max_abs_difference is None
            or self.max_length_ratio is None
            or self.cosine_min < _CLOSE
        ):
            return "different"
        if not self._shares_type:
            return "other type"
        if self.cosine_min < _INTERCHANGEABLE:
            return "close"
        if self.max_length_ratio > _SAME_LENGTH:
            return "scaled"
        equal = self.max_abs_difference <= _IDENTICAL
        exact = {NUMBERS, DECIMALS}
        return "identical" if equal and exact >= set(self.numbers) else "interchangeable"

    @property
    def _shares_type(self) -> bool:
        """Whether both sides are floating-point numbers, or of one type."""
        one, other = (name.startswith("float") or name == DECIMALS for name in self.numbers)
        return (one and other) or self.numbers[0] == self.numbers[1]


def compare(
    one: FloatArray, other: FloatArray, numbers: tuple[str, str] = (NUMBERS, NUMBERS)
) -> Comparison:
    """The agreement of vectors `(n, D)` and `(n, D')` of the same texts, row by row.

    Args:
        one: vectors of any lengths, none of zeros.
        other: the same.
        numbers: type of the numbers of one, and of the other, before they were made float32.
    """
    sizes = (one.shape[1], other.shape[1])
    lengths = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (one, other)]
    norms = (float(lengths[0].mean()), float(lengths[1].mean()))
    if sizes[0] != sizes[1]:
        return Comparison(len(one), sizes, numbers, norms)
    a, b = l2_normalize(one), l2_normalize(other)
    cosines = (a * b).sum(1)
    return Comparison(
        len(a),
        sizes,
        numbers,
        norms,
        max_abs_difference=float(np.abs(one - other).max()),
        max_length_ratio=float(np.abs(lengths[1] / lengths[0] - 1).max()),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        same_neighbours=_same_neighbours(a, b) if len(a) > _NEIGHBOURS + 1 else None,
        is_shuffled=bool(cosines.min() < _CLOSE) and _is_shuffled(a, b),
    )


def _same_neighbours(a: FloatArray, b: FloatArray) -> float:
    """Mean share of each text's nearest in `a` that its vector in `b` finds there, too."""
    shares: list[float] = []
    for index in range(len(a)):
        found: list[set[int]] = []
        for query in (a[index], b[index]):
            scores = a @ query
            scores[index] = -np.inf
            found.append(set(np.argpartition(-scores, _NEIGHBOURS)[:_NEIGHBOURS].tolist()))
        shares.append(len(found[0] & found[1]) / _NEIGHBOURS)
    return float(np.mean(shares))


def _is_shuffled(a: FloatArray, b: FloatArray) -> bool:
    """Whether every row of `a` is a row of `b`, and the other way round."""
    scores = a @ b.T
    return bool(min(scores.max(0).min(), scores.max(1).min()) >= _INTERCHANGEABLE)
