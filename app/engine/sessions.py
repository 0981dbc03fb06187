"""The ONNX Runtime session: one copy of the weights, run from several threads at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from app.core.errors import ArtifactDamaged, InferenceFailed
from app.engine.padding import PaddedBatch
from app.engine.postprocess import FloatArray
from app.graph.interface import (
    APPLY_MASK,
    ATTENTION_MASK,
    INPUT_IDS,
    TOKEN_TYPE_IDS,
    hidden_states_output,
    input_names,
)

# ORT fuses Add and LayerNormalization into a SkipLayerNormalization that is several times
# slower on CPU than the two it replaces (docs/LOG.md).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a session uses the machine.

    Attributes:
        threads: threads of one run.
    """

    threads: int


class Session:
    """One loaded graph; `run` may be called from several threads at once.

    Args:
        path: `model.onnx`, its data file beside it.
        config: use of the machine.

    Raises:
        ArtifactDamaged: ORT cannot load it, or it lacks an input or output we rely on.
    """

    def __init__(self, path: Path, config: SessionConfig) -> None:
        options = cast("Any", ort).SessionOptions()
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its one warning is about apply_mask's default value
        # Spinning between operators burns the cores that other runs could use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session: Any = ort.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_DISABLED_OPTIMIZERS,
            )
            self._inputs = input_names(session)
            outputs = [str(item.name) for item in session.get_outputs()]
            self._output = hidden_states_output(self._inputs, outputs)
        except Exception as exc:
            raise ArtifactDamaged(
                f"{path}: ONNX Runtime cannot load it: {exc}. Build it again with matryo build."
            ) from exc
        self._session = session
        self._options: Any = cast("Any", ort).RunOptions()
        # The arena keeps its peak for good unless told to shrink: a text of 8192 tokens
        # would cost 560 MB from then on. Shrinking is for the rare long ones.
        self._shrinking: Any = cast("Any", ort).RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, batch: PaddedBatch, *, apply_mask: bool) -> FloatArray:
        """Hidden states `(B, T, H)` float32.

        Args:
            batch: the texts.
            apply_mask: whether attention looks at the mask. It may depend on nothing but the
                texts' own lengths: the two paths differ in the last bits.

        Raises:
            InferenceFailed: the run raised.
        """
        feeds: dict[str, Any] = {
            INPUT_IDS: batch.input_ids,
            ATTENTION_MASK: batch.attention_mask,
        }
        if APPLY_MASK in self._inputs:
            feeds[APPLY_MASK] = np.array(apply_mask)
        if TOKEN_TYPE_IDS in self._inputs:  # of a ready export
            feeds[TOKEN_TYPE_IDS] = np.zeros_like(batch.input_ids)
        try:
            options = self._options if apply_mask else self._shrinking
            outputs = self._session.run([self._output], feeds, options)
        except Exception as exc:
            shape = "x".join(map(str, batch.input_ids.shape))
            raise InferenceFailed(f"a run of {shape} tokens failed: {exc}") from exc
        return cast("FloatArray", outputs[0])

    def interrupt(self) -> None:
        """Make runs under way, and any later one, fail soon; for the end of the process."""
        self._options.terminate = True
        self._shrinking.terminate = True
