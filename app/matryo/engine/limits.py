"""The limits and costs of an engine, which the scheduler plans batches with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits and costs of an engine's runs. The unit of cost is one token's matrix products.

    Attributes:
        solo_tokens: a text with more tokens than this runs alone.
        min_batch_tokens: a batch may always have this many tokens, even if the model is slow.
        max_batch_tokens: a batch of several texts never has more tokens, even if the model is
            fast.
        max_scores: most attention scores of a batch: the number of texts times the square of the
            longest text's tokens. It limits the memory of attention.
        score_tokens: cost of one attention score, as a fraction of one token's matrix products.
        run_tokens: fixed cost of one run, in tokens.
        workers: number of concurrent runs that computes the most tokens a second.
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
