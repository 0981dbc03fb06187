"""Pads texts of several lengths to one rectangular batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matryo.engine.tokenizer import TokenIds


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """The texts of a run, padded on the right to the longest text.

    Attributes:
        input_ids: `(B, T)` int64, 0 at padding.
        attention_mask: `(B, T)` int64, 1 at a token and 0 at padding.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


def pad(texts: Sequence[TokenIds]) -> PaddedBatch:
    """The texts as one batch, padded on the right to the longest text.

    Args:
        texts: token ids of each text; at least one text, and no empty text.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    positions = np.arange(int(lengths.max()))
    mask: NDArray[np.bool_] = positions < lengths[:, None]  # (B, T)
    input_ids = np.zeros(mask.shape, np.int64)
    input_ids[mask] = np.concatenate(texts)
    return PaddedBatch(input_ids, mask.astype(np.int64))
