"""Dynamic NTK: the rotary base of a text that is longer than the texts of the training."""

from __future__ import annotations

from matryo.build.arch import _rotary
from matryo.build.arch.nomic_bert.config import Config
from matryo.build.checkpoint import FloatArray


def rotary_tables(config: Config, n_tokens: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of every position of a text; each `(n_tokens, head_size / 2)` float32.

    Args:
        config: the model's config.
        n_tokens: length of the text. With dynamic NTK the frequencies depend on it.
    """
    theta = config.rope_theta * _stretch(config, n_tokens)
    return _rotary.rotary_tables(config.head_size, theta, n_tokens)


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
