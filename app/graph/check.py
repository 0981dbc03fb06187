"""The check that ends a build: the graph against the plain numpy forward, and itself.

It catches what a wrong name, layout, epsilon or activation does to the numbers. Whether
the *weights* are the published model's is for the manifest's hashes and `matryo verify`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.core.errors import BuildFailed
from app.graph.arch import ArchitectureModule
from app.graph.checkpoint import FloatArray, Weights

MAX_ABS_ERROR = 1e-4
"""Allowed difference on hidden states, whose entries are of the order of 1."""

_N_TOKENS = 8


def check_graph(
    graph_path: Path,
    architecture: ArchitectureModule,
    weights: Weights,
    config: object,
    vocab_size: int,
) -> float:
    """Run a short text through graph and numpy.

    The text is of fixed pseudo-random ids, run alone and unmasked, then masked beside a
    longer one, so that padding is checked too.

    Returns:
        The largest absolute difference on hidden states.

    Raises:
        BuildFailed: it is over `MAX_ABS_ERROR`, not finite, or ORT refuses the graph.
    """
    ids = np.random.default_rng(0).integers(0, vocab_size, 2 * _N_TOKENS)
    text = ids[:_N_TOKENS]
    expected = architecture.forward(weights, config, text)

    batch = np.stack([np.pad(text, (0, _N_TOKENS)), ids])
    mask = np.ones_like(batch)
    mask[0, _N_TOKENS:] = 0
    options = cast("Any", ort).SessionOptions()
    options.log_severity_level = 3
    # Weights stay mapped: a check reads each twice, so packing them would only cost memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(str(graph_path), options, ["CPUExecutionProvider"])
        alone = _run(session, text[None], np.ones_like(text[None]), apply_mask=False)[0]
        padded = _run(session, batch, mask, apply_mask=True)[0, :_N_TOKENS]
    except Exception as exc:
        raise BuildFailed(f"ONNX Runtime cannot run the graph: {exc}") from exc

    error = max(float(np.abs(found - expected).max()) for found in (alone, padded))
    if not error <= MAX_ABS_ERROR:  # also true for NaN
        raise BuildFailed(
            f"the graph's hidden states differ from the plain forward by {error:.3g}, allowed "
            f"{MAX_ABS_ERROR:g}: this build does not compute the model. Please report it with "
            "the model.toml and the versions of onnxruntime and numpy."
        )
    return error


def _run(
    session: ort.InferenceSession,
    input_ids: NDArray[np.int64],
    attention_mask: NDArray[np.int64],
    *,
    apply_mask: bool,
) -> FloatArray:
    feeds = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "apply_mask": np.array(apply_mask),
    }
    return cast("FloatArray", session.run(["last_hidden_state"], feeds)[0])
