"""The probe of a model's limits: the tokenizer's last id, and the longest text that is served.

A model whose word table or positions end before would fail while it serves, at a text that reaches
the end.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from matryo.build.limits import PROBE_SECONDS, PROBE_TOKENS
from matryo.build.tokenizer import TokenizerFile
from matryo.catalog.manifest import Manifest
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import refusing
from matryo.engine.onnx.interface import SOLO_TOKENS
from matryo.engine.onnx.runtime import GraphSession


def probe_limits(
    session: GraphSession, tokenizer: TokenizerFile, manifest: Manifest, graph: Path
) -> None:
    """Run the tokenizer's last id alone, and then a text of `max_tokens` that ends with it.

    The text has at most `PROBE_TOKENS` tokens, unless a longer one takes little time. The tables of
    positions themselves are compared with `max_tokens` before, where they can be seen: by
    `arch.load` for the graphs that are built here, and in `build` for others.

    Args:
        session: the graph in a session.
        tokenizer: the tokenizer of the graph.
        manifest: the model, which says `max_tokens`.
        graph: path of the graph, for messages.

    Raises:
        CheckpointMismatch: a run fails, or gives values that are not finite.
    """
    last = max(tokenizer.last_id, 0)
    _run(
        session,
        [last],
        f"{tokenizer.path} has ids up to {last}, but {graph.name} cannot look up {last}",
        "Put the tokenizer.json of the model beside the weights.",
    )
    limit = manifest.tokenizer.max_tokens
    n_tokens = min(limit, PROBE_TOKENS)
    spent_s = _run_longest(session, last, n_tokens, limit, graph)
    # Attention costs four times as much for twice the tokens, and everything else twice.
    if n_tokens < limit and spent_s * (limit / n_tokens) ** 2 < PROBE_SECONDS:
        _run_longest(session, last, limit, limit, graph)


def _run_longest(session: GraphSession, last: int, n_tokens: int, limit: int, graph: Path) -> float:
    """Run a text of `n_tokens`; returns the seconds that it took."""
    started = time.perf_counter()
    _run(
        session,
        [0] * (n_tokens - 1) + [last],
        f"model.toml says tokenizer.max_tokens = {limit}, but {graph.name} cannot run a text of "
        f"{n_tokens} tokens",
        "Lower max_tokens to the number of the model's positions.",
    )
    return time.perf_counter() - started


def _run(session: GraphSession, ids: list[int], fault: str, remedy: str) -> None:
    """Run one text as the server does.

    Raises:
        CheckpointMismatch: the run fails, or gives values that are not finite.
    """
    batch = np.array([ids], np.int64)
    with refusing(lambda reason: CheckpointMismatch(f"{fault}: {reason}. {remedy}")):
        hidden = session.run(batch, np.ones_like(batch), apply_mask=len(ids) <= SOLO_TOKENS)
        shape = batch.shape[: hidden.ndim - 1]
        if hidden.shape[:-1] != shape or not np.isfinite(hidden).all():
            raise ValueError(f"it gives {hidden.shape} values, which must be finite")
