"""Loads a graph in ONNX Runtime, with the options that Matryo uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from matryo.engine.onnx.interface import (
    APPLY_MASK,
    ATTENTION_MASK,
    INPUT_IDS,
    TOKEN_TYPE_IDS,
    hidden_states_output,
)
from matryo.engine.postprocess import FloatArray

# This optimizer fuses Add and LayerNormalization into SkipLayerNormalization. On a CPU the fused
# operator is several times slower than the two operators (docs/LOG.md).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]

ORT_VERSION: str = cast("Any", ort).__version__


def session_options(threads: int) -> Any:  # noqa: ANN401
    """Options of a session whose runs have `threads` threads; 0 leaves the number to ORT."""
    options = cast("Any", ort).SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # ORT would warn about the default value of apply_mask
    # A thread that spins between two operators would take a core from other runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class GraphSession:
    """A loaded graph. Several threads may call `run` at once.

    Args:
        path: the graph. Its data files are in the same folder.
        options: options made by `session_options`.

    Attributes:
        computes_padding: whether the matrix products compute padding tokens too. They do not in
            a graph that Matryo built, which has the input `apply_mask`.

    Raises:
        ValueError: the graph has unknown inputs or outputs.
        Exception: ORT cannot load the graph.
    """

    def __init__(self, path: Path, options: object) -> None:
        self._session: Any = ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_DISABLED_OPTIMIZERS,
        )
        # ORT does not count an input with a default value, such as `apply_mask`, as an input, but
        # as an overridable initializer.
        declared = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._inputs = frozenset(str(item.name) for item in declared)
        self.computes_padding = APPLY_MASK not in self._inputs
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
        """Hidden states `(B, T, H)` float32; values at padding are arbitrary.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 1 at a token and 0 at padding.
            apply_mask: False makes attention ignore the mask, which must then be 1 everywhere.
            run_options: RunOptions of ORT; None for its defaults.

        Raises:
            Exception: ORT cannot run the graph.
        """
        feeds: dict[str, Any] = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if APPLY_MASK in self._inputs:
            feeds[APPLY_MASK] = np.array(apply_mask)
        if TOKEN_TYPE_IDS in self._inputs:  # only in graphs of other tools
            feeds[TOKEN_TYPE_IDS] = np.zeros_like(input_ids)
        return cast("FloatArray", self._session.run([self._output], feeds, run_options)[0])
