"""The limits and costs of ONNX Runtime on a CPU."""

from __future__ import annotations

from matryo.engine.cores import CoreUse
from matryo.engine.limits import EngineLimits
from matryo.engine.onnx.interface import SOLO_TOKENS


def cpu_limits(use: CoreUse) -> EngineLimits:
    """The limits of an engine on these cores; docs/LOG.md has the measurements."""
    return EngineLimits(
        solo_tokens=SOLO_TOKENS,
        min_batch_tokens=64,
        # From a few hundred tokens on, a larger batch costs no less a token, but more memory.
        max_batch_tokens=1024,
        max_scores=1 << 21,
        # nomic-embed-text-v1.5 computes 0.88 times as many tokens a second in texts of 512
        # tokens as in texts of 128.
        score_tokens=1 / 4096,
        # A run reads all of the weights. Reading takes about as long as computing 16 tokens.
        run_tokens=16,
        workers=use.workers,
        threads=use.threads,
    )
