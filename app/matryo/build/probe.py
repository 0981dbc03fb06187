"""The probe of a model's limits: the tokenizer's last id, and the longest text that is served.

A model whose word table or positions end before would fail while it serves, at a text that reaches
the end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from matryo.build.limits import PROBE_TOKENS
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

    The text has at most `PROBE_TOKENS` tokens: a longer run would take longer than the build.

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
    _run(
        session,
        [0] * (n_tokens - 1) + [last],
        f"model.toml says tokenizer.max_tokens = {limit}, but {graph.name} cannot run a text of "
        f"{n_tokens} tokens",
        "Lower max_tokens to the number of the model's positions.",
    )


def _run(session: GraphSession, ids: list[int], fault: str, remedy: str) -> None:
    """Run one text as the server does.

    Raises:
        CheckpointMismatch: the run fails, or gives values that are not finite.
    """
    batch = np.array([ids], np.int64)
    with refusing(lambda reason: CheckpointMismatch(f"{fault}: {reason}. {remedy}")):
        hidden = session.run(batch, np.ones_like(batch), apply_mask=len(ids) <= SOLO_TOKENS)
        if hidden.shape[:2] != batch.shape or not np.isfinite(hidden).all():
            raise ValueError(f"it gives {hidden.shape} values, which must be finite")
