"""What ONNX Runtime does well on a CPU."""

from __future__ import annotations

from matryo.engine.cores import CoreUse
from matryo.engine.limits import EngineLimits
from matryo.engine.onnx.interface import SOLO_TOKENS


def cpu_limits(use: CoreUse) -> EngineLimits:
    """The limits of an engine on these cores; docs/LOG.md has the measurements."""
    return EngineLimits(
        solo_tokens=SOLO_TOKENS,
        min_batch_tokens=64,
        # A token costs the same from a few hundred tokens on, but memory still grows.
        max_batch_tokens=1024,
        max_scores=1 << 21,
        # nomic-embed-text-v1.5 computes texts of 512 tokens at 0.88 of the rate of 128.
        score_tokens=1 / 4096,
        # A run reads all of the weights, which takes about as long as computing these tokens.
        run_tokens=16,
        workers=use.workers,
        threads=use.threads,
    )
