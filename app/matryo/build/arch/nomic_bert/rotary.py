"""Rotary positions, with dynamic NTK for long texts.

Source: Su et al. 2021, RoFormer, arXiv:2104.09864, section 3.4.
"""

from __future__ import annotations

import numpy as np

from matryo.build.arch.nomic_bert.config import Config
from matryo.build.checkpoint import FloatArray


def rotary_tables(config: Config, n_tokens: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of every position of a text; each `(n_tokens, head_size / 2)` float32.

    Args:
        config: the model's config.
        n_tokens: length of the text. With dynamic NTK the frequencies depend on it.
    """
    # Angles are float32, as in the reference. Exact angles would differ from the reference's by
    # 5e-4 at position 8000.
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    theta = config.rope_theta * _stretch(config, n_tokens)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    angles = np.outer(np.arange(n_tokens, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def _stretch(config: Config, n_tokens: int) -> float:
    """The factor by which dynamic NTK multiplies the rotary base of a text of `n_tokens`.

    The reference computes the factor from the longest text of a batch, and keeps the table for
    later batches. Here the factor depends on the text's own length, because a text's vector may
    not depend on other texts.

    Source: nomic-bert-2048, `NomicBertDynamicNTKRotaryEmbedding`.
    """
    factor, trained = config.rotary_scaling_factor, config.max_trained_positions
    if factor is None or n_tokens <= trained:
        return 1.0
    ratio = factor * n_tokens / trained - (factor - 1)
    return ratio ** (config.head_size / (config.head_size - 2))
