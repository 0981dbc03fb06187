"""Turns hidden states into vectors: the manifest's output steps in float32 numpy.

The bits of a text's vector depend on the text's own tokens only. A sum over tokens adds them in
their order, and padding does not change the order. BLAS is not used, because its order of summation
depends on the shape of a batch.
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
        hidden: `(B, T, H)` float32, not modified; values at padding are ignored.
        mask: `(B, T)`, 1 at a real token and 0 at padding.

    Returns:
        `(B, H)` float32, not normalised; zeros for a text without tokens.

    Source: nomic-embed-text-v1.5's model card, "Usage"; sentence-transformers `Pooling`, mode mean.
    """
    counts = mask.sum(axis=1, dtype=np.float32)[:, None]  # (B, 1)
    if mask.all():
        return np.add.reduce(hidden, axis=1) / counts  # (B, H)
    sums = np.add.reduce(hidden, axis=1, where=mask.astype(bool)[:, :, None])
    return sums / np.maximum(counts, 1)


def cls_pool(hidden: FloatArray) -> FloatArray:
    """Each text's first hidden state, which belongs to `[CLS]`; `(B, H)` float32, not normalised.

    Source: sentence-transformers `Pooling`, mode cls; the model cards of BGE.
    """
    return hidden[:, 0]


def pool(hidden: FloatArray, mask: NDArray[np.int64], output: Output) -> FloatArray:
    """One state for each text, pooled by the manifest's first step; `(B, H)` float32."""
    return cls_pool(hidden) if output.steps[0] == "cls_pool" else mean_pool(hidden, mask)


def layer_norm(x: FloatArray, eps: float) -> FloatArray:
    """Layer norm over the last axis, without scale and shift; `(B, H)` float32.

    Args:
        x: `(B, H)` float32.
        eps: added to the variance.

    Source: nomic-embed-text-v1.5's model card, `F.layer_norm`; Ba et al. 2016, arXiv:1607.06450.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps))


def truncate(x: FloatArray, dimensions: int) -> FloatArray:
    """The first `dimensions` components of each row of `x`; `dimensions` is 1 to H.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147.
    """
    return x[:, :dimensions]


def l2_normalize(x: FloatArray) -> FloatArray:
    """`x` with each row divided by its Euclidean length; a row of zeros stays zero."""
    norms = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    return x / np.maximum(norms, np.finfo(np.float32).tiny)


def postprocess(
    hidden: FloatArray,
    mask: NDArray[np.int64],
    dimensions: Sequence[int],
    output: Output,
) -> list[FloatArray]:
    """Vectors of a batch, by the manifest's steps. Each text may have its own output size.

    Args:
        hidden: `(B, T, H)` float32, the last hidden states.
        mask: `(B, T)`, 1 at a real token and 0 at padding.
        dimensions: output size of each text, 1 to H.
        output: the manifest's steps and their constants.

    Returns:
        A float32 unit vector `(dimensions[i],)` for each text, in order; zeros for a text without
        tokens.
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
