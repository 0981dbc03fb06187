"""A graph in ONNX Runtime, set up and fed the way this project does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from matryo.build.checkpoint.base import FloatArray
from matryo.engine.onnx.interface import (
    APPLY_MASK,
    ATTENTION_MASK,
    INPUT_IDS,
    TOKEN_TYPE_IDS,
    hidden_states_output,
)

# ORT fuses Add and LayerNormalization into a SkipLayerNormalization that is several times
# slower on CPU than the two it replaces (docs/LOG.md).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]

ORT_VERSION: str = cast("Any", ort).__version__


def session_options(threads: int) -> Any:  # noqa: ANN401
    """Options of a session whose runs use `threads` threads."""
    options = cast("Any", ort).SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its one warning is about apply_mask's default value
    # Spinning between operators burns the cores that other runs could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class GraphSession:
    """A loaded graph, inputs and output bound by name; runs may overlap.

    Args:
        path: the graph, its data files beside it.
        options: of ORT, from `session_options`.

    Attributes:
        packs_tokens: padding costs attention alone; so it is in the graphs that we build,
            which are known by their input `apply_mask`.

    Raises:
        Exception: whatever ORT raises, or ValueError for inputs and outputs we do not know.
    """

    def __init__(self, path: Path, options: object) -> None:
        self._session: Any = ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_DISABLED_OPTIMIZERS,
        )
        # An input with a default value, as `apply_mask` is, counts for ORT as an initializer
        # that may be overridden, and is not among get_inputs().
        declared = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._inputs = frozenset(str(item.name) for item in declared)
        self.packs_tokens = APPLY_MASK in self._inputs
        outputs = [str(item.name) for item in self._session.get_outputs()]
        self._output = hidden_states_output(self._inputs, outputs)

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        *,
        apply_mask: bool,
        run_options: object = None,
    ) -> FloatArray:
        """Hidden states `(B, T, H)`; see `matryo.engine.onnx.interface` for what is fed."""
        feeds: dict[str, Any] = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if APPLY_MASK in self._inputs:
            feeds[APPLY_MASK] = np.array(apply_mask)
        if TOKEN_TYPE_IDS in self._inputs:  # of a ready export
            feeds[TOKEN_TYPE_IDS] = np.zeros_like(input_ids)
        return cast("FloatArray", self._session.run([self._output], feeds, run_options)[0])
