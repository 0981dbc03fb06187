"""Where its tokens stand: rotary positions, stretched for long texts if asked for."""

from __future__ import annotations

import numpy as np

from matryo.build.arch.nomic_bert.config import Config
from matryo.build.checkpoint import FloatArray


def rotary_tables(config: Config, n_tokens: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of every position of a text, `(n_tokens, head_size / 2)` float32.

    Angles are rounded to float32 where the reference rounds them: at position 8000 exact
    ones would differ from it by 5e-4.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    theta = config.rope_theta * _stretch(config, n_tokens)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    angles = np.outer(np.arange(n_tokens, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def _stretch(config: Config, n_tokens: int) -> float:
    """What dynamic NTK multiplies the rotary base by, for a text of `n_tokens`.

    The reference takes the longest text of the batch and keeps the stretched table for
    whatever comes after. This is the text's own length, so that nothing depends on company.

    Source: nomic-bert-2048, `NomicBertDynamicNTKRotaryEmbedding`.
    """
    factor, trained = config.rotary_scaling_factor, config.max_trained_positions
    if factor is None or n_tokens <= trained:
        return 1.0
    ratio = factor * n_tokens / trained - (factor - 1)
    return ratio ** (config.head_size / (config.head_size - 2))
