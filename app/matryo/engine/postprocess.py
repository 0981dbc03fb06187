"""From hidden states to vectors: the manifest's output steps, vectorised, in float32.

Each row of a result depends on that row's own tokens only, bit for bit. Sums over tokens run in the
order of the tokens, whatever padding follows. They never use BLAS, whose order of summation changes
with the shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.catalog.manifest import Output

FloatArray = NDArray[np.float32]


def mean_pool(hidden: FloatArray, mask: NDArray[np.int64]) -> FloatArray:
    """Average each text's hidden states over its real tokens.

    Args:
        hidden: `(B, T, H)` float32, not changed; values at padding have no meaning.
        mask: `(B, T)`, 1 for a real token; every row has at least one.

    Returns:
        `(B, H)` float32, not normalised.

    Source: model cards, "Usage"; sentence-transformers `Pooling`, mode mean.
    """
    counts = mask.sum(axis=1, dtype=np.float32)[:, None]  # (B, 1)
    if mask.all():
        return np.add.reduce(hidden, axis=1) / counts  # (B, H)
    return np.add.reduce(hidden, axis=1, where=mask.astype(bool)[:, :, None]) / counts


def cls_pool(hidden: FloatArray) -> FloatArray:
    """Each text's first hidden state, that of `[CLS]`; `(B, H)` float32, not normalised.

    Source: sentence-transformers `Pooling`, mode cls; BGE's model cards.
    """
    return hidden[:, 0]


def pool(hidden: FloatArray, mask: NDArray[np.int64], output: Output) -> FloatArray:
    """One state for each text, by the manifest's first step; `(B, H)` float32."""
    return cls_pool(hidden) if output.steps[0] == "cls_pool" else mean_pool(hidden, mask)


def layer_norm(x: FloatArray, eps: float) -> FloatArray:
    """Layer norm over the last axis, without scale and shift.

    Args:
        x: `(B, H)` float32.
        eps: added to the variance.

    Source: nomic-embed-text-v1.5's card, `F.layer_norm(x, (768,))`.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps))


def truncate(x: FloatArray, dimensions: int) -> FloatArray:
    """The first `dimensions` components of each row, 1 to H.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147.
    """
    return x[:, :dimensions]


def l2_normalize(x: FloatArray) -> FloatArray:
    """Rows scaled to unit length; a row of zeros stays zero."""
    norms = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    return x / np.maximum(norms, np.finfo(np.float32).tiny)


def postprocess(
    hidden: FloatArray,
    mask: NDArray[np.int64],
    dimensions: Sequence[int],
    output: Output,
) -> list[FloatArray]:
    """Vectors of a batch, by the manifest's steps; each text has an output size of its own.

    Args:
        hidden: `(B, T, H)` float32, the last hidden states.
        mask: `(B, T)`, 1 for a real token.
        dimensions: output size of each text, 1 to H.
        output: the steps and their constants.

    Returns:
        One `(dimensions[i],)` float32 unit vector for each text, in order.
    """
    x = pool(hidden, mask, output)
    if output.layer_norm_eps is not None:
        x = layer_norm(x, output.layer_norm_eps)
    sizes = np.asarray(dimensions)
    vectors: list[FloatArray] = [x[0]] * len(sizes)
    for size in set(dimensions):
        rows = np.flatnonzero(sizes == size)
        for row, vector in zip(rows, l2_normalize(truncate(x[rows], size)), strict=True):
            vectors[row] = vector
    return vectors
