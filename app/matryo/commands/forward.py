"""The check of `matryo verify` that needs the checkpoint: the graph against the numpy forward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matryo.build import arch
from matryo.build.check import MAX_ABS_ERROR, compare
from matryo.build.inputs import format_of, open_checkpoint, weights_file
from matryo.core.errors import MatryoError
from matryo.engine import Engine, TokenIds
from matryo.store.artifact import Artifact, own_sources
from matryo.store.sources import find_change


def compare_with_forward(
    engine: Engine, artifact: Artifact, texts: Sequence[TokenIds]
) -> tuple[str, str, bool | None]:
    """What was found, what is allowed, and whether that is so; None if there is no checkpoint."""
    exact = engine.precision == "fp32"
    least = engine.manifest.precisions[engine.precision].min_cosine
    allowed = f"{MAX_ABS_ERROR:g}" if exact else f"at least {least:g}"
    path = weights_file(Path(artifact.record.checkpoint_path), engine.manifest.weights)
    if not path.is_file():
        return f"the checkpoint {path} is gone", allowed, None
    if format_of(path) == ".onnx":
        return "the checkpoint is a graph itself", allowed, None
    if find_change(own_sources(artifact.record)[:1]):
        found = f"the checkpoint {path} is not what it was when this was built"
        return found, allowed, None
    architecture, config = arch.load(engine.manifest)
    try:
        checkpoint = open_checkpoint(path)
        weights = architecture.bind(checkpoint, config)
        expected = architecture.forward(weights, config, texts)
        checkpoint.close()
    except MatryoError as exc:
        return exc.message, allowed, False
    agreement = compare([engine.hidden_states(ids) for ids in texts], expected)
    if exact:
        found_text = f"max abs difference {agreement.max_abs_error:.2g}"
        return found_text, allowed, agreement.max_abs_error <= MAX_ABS_ERROR
    found_text = f"least cosine {agreement.min_cosine:.6f}"
    return found_text, allowed, agreement.min_cosine >= least
