"""Texts of several lengths as one rectangular batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matryo.engine.tokenizer import TokenIds


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """What a run takes.

    Attributes:
        input_ids: `(B, T)` int64, 0 after a text's end.
        attention_mask: `(B, T)` int64, 1 for a real token.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    @property
    def n_padding(self) -> int:
        """Padding tokens that are computed for nothing."""
        return self.attention_mask.size - int(self.attention_mask.sum())


def pad(texts: Sequence[TokenIds]) -> PaddedBatch:
    """Pad on the right to the longest text; there is at least one, and none is empty."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    places = np.arange(int(lengths.max()))
    mask: NDArray[np.bool_] = places < lengths[:, None]  # (B, T)
    input_ids = np.zeros(mask.shape, np.int64)
    input_ids[mask] = np.concatenate(texts)
    return PaddedBatch(input_ids, mask.astype(np.int64))
