"""What an engine can do well, in the numbers that a scheduler plans with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds and costs of an engine's runs. Costs are in tokens: the matrix products of one.

    Attributes:
        solo_tokens: a text over this many tokens runs alone.
        min_batch_tokens: a batch may have this many tokens, however slow the model is.
        max_batch_tokens: a batch of several texts has at most this many tokens, however fast
            the model is.
        max_scores: most attention scores of a batch, texts times the square of the longest;
            bounds the memory of attention.
        score_tokens: cost of one attention score, as a fraction of one token's matrix products.
        run_tokens: fixed cost of one run, in tokens.
        workers: concurrent runs that get the most out of the cores the engine was given.
        threads: threads of each of these runs.
    """

    solo_tokens: int
    min_batch_tokens: int
    max_batch_tokens: int
    max_scores: int
    score_tokens: float
    run_tokens: float
    workers: int
    threads: int
