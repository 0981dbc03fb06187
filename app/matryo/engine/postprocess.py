"""Turns a graph's output into vectors: the manifest's output steps in float32 numpy.

The bits of a text's vector depend on the text's own tokens only. A sum over tokens adds them in
their order, and padding does not change the order. BLAS is not used, because its order of summation
depends on the shape of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from matryo.catalog.output import Output, Pool
from matryo.engine.dense import DenseLayer, dense

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


# --- pools
#
# Each takes `hidden`, `(B, T, H)` float32, and `mask`, `(B, T)`, 1 at a token and 0 at padding.
# Texts are padded on the right, and have at least one token. Values at padding are ignored. Each
# pool returns `(B, H)` float32, not normalised.
#
# Source: sentence-transformers, `Pooling`, whose modes have similar names.


def mean_pool(hidden: FloatArray, mask: IntArray) -> FloatArray:
    """Average each text's hidden states over its tokens.

    Source: nomic-embed-text-v1.5's model card, "Usage"; mode `mean`.
    """
    return np.divide(_sum(hidden, mask), _lengths(mask))


def mean_sqrt_len_pool(hidden: FloatArray, mask: IntArray) -> FloatArray:
    """The sum of each text's hidden states, divided by the square root of its number of tokens."""
    return np.divide(_sum(hidden, mask), np.sqrt(_lengths(mask)))


def weighted_mean_pool(hidden: FloatArray, mask: IntArray) -> FloatArray:
    """Average each text's hidden states, the n-th token with the weight n."""
    weights = np.arange(1, hidden.shape[1] + 1, dtype=np.float32)  # (T,)
    counts = mask.sum(axis=1)
    total = (counts * (counts + 1) // 2).astype(np.float32)[:, None]  # (B, 1)
    return np.divide(_sum(hidden * weights[:, None], mask), total)


def max_pool(hidden: FloatArray, mask: IntArray) -> FloatArray:
    """The largest value of each component over each text's tokens."""
    counts = mask.sum(axis=1)
    rows = [np.maximum.reduce(row[:n]) for row, n in zip(hidden, counts, strict=True)]
    # Adding zero turns -0.0 into 0.0: which of two zeros is the larger depends on numpy's loop.
    return np.stack(rows) + np.float32(0)


def cls_pool(hidden: FloatArray, mask: IntArray) -> FloatArray:  # noqa: ARG001 - a pool like others
    """Each text's first hidden state, which belongs to `[CLS]`.

    Source: mode `cls`; the model cards of BGE.
    """
    return hidden[:, 0]


def last_token_pool(hidden: FloatArray, mask: IntArray) -> FloatArray:
    """Each text's last hidden state.

    Source: mode `lasttoken`; the model card of Qwen3-Embedding.
    """
    return hidden[np.arange(len(hidden)), mask.sum(axis=1) - 1]


_POOLS: Mapping[Pool, Callable[[FloatArray, IntArray], FloatArray]] = {
    "mean_pool": mean_pool,
    "mean_sqrt_len_pool": mean_sqrt_len_pool,
    "weighted_mean_pool": weighted_mean_pool,
    "max_pool": max_pool,
    "cls_pool": cls_pool,
    "last_token_pool": last_token_pool,
}


def _lengths(mask: IntArray) -> FloatArray:
    """Number of tokens of each text; `(B, 1)` float32."""
    return mask.sum(axis=1, dtype=np.float32)[:, None]


def _sum(hidden: FloatArray, mask: IntArray) -> FloatArray:
    """Sum of each text's hidden states, token after token; `(B, H)` float32."""
    if mask.all():
        return np.add.reduce(hidden, axis=1)
    return np.add.reduce(hidden, axis=1, where=mask.astype(bool)[:, :, None])


def pool(states: FloatArray, mask: IntArray, output: Output) -> FloatArray:
    """One state for each text: the results of the manifest's pools, joined.

    Args:
        states: the graph's output: `(B, T, H)` float32, or `(B, H)` if the graph pools itself.
        mask: `(B, T)`, 1 at a real token and 0 at padding.
        output: the manifest's steps.

    Returns:
        `(B, H * number of pools)` float32.
    """
    if output.given:
        return states
    pooled = [_POOLS[step](states, mask) for step in output.pools]
    return np.concatenate(pooled, axis=1) if len(pooled) > 1 else pooled[0]


# --- the other steps


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
    states: FloatArray,
    mask: IntArray,
    dimensions: Sequence[int],
    output: Output,
    layers: Sequence[DenseLayer] = (),
    normalize: Sequence[bool] | None = None,
) -> list[FloatArray]:
    """Vectors of a batch, by the manifest's steps. Each text may have its own output size.

    Args:
        states: the graph's output: the last hidden states `(B, T, H)` float32, or a vector for
            each text `(B, H)` if the graph pools itself.
        mask: `(B, T)`, 1 at a real token and 0 at padding.
        dimensions: output size of each text, 1 to the native size.
        output: the manifest's steps and their constants.
        layers: the layer of each step `dense`, in order.
        normalize: whether each text's vector gets the last step, `l2_normalize`; None for all.

    Returns:
        A float32 vector `(dimensions[i],)` for each text, in order: of unit length, or as it was
        before the last step; zeros for a text without tokens.
    """
    x = pool(states, mask, output)
    dense_layers = iter(layers)
    for step in output.between:
        if step == "dense":
            x = dense(x, next(dense_layers))
        elif step == "layer_norm":
            assert output.layer_norm_eps is not None, "checked by the manifest"
            x = layer_norm(x, output.layer_norm_eps)
        else:
            x = l2_normalize(x)
    sizes = np.asarray(dimensions)
    vectors: list[FloatArray] = [x[0]] * len(sizes)
    for size in set(dimensions):
        rows = np.flatnonzero(sizes == size)
        for row, vector in zip(rows, l2_normalize(truncate(x[rows], size)), strict=True):
            vectors[row] = vector
    for row in np.flatnonzero(~np.asarray(normalize)) if normalize is not None else ():
        vectors[row] = x[row, : sizes[row]].copy()  # a view would keep the whole batch
    return vectors
