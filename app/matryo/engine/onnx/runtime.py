"""Loads a graph in ONNX Runtime, with the options that Matryo uses."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from matryo.catalog.output import Output
from matryo.core.native import native_library
from matryo.engine.onnx.interface import (
    APPLY_MASK,
    ATTENTION_MASK,
    INPUT_IDS,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
    Port,
    plan_graph,
)
from matryo.engine.postprocess import FloatArray
from matryo.store.bundle import bundled_graph

# This optimizer fuses Add and LayerNormalization into SkipLayerNormalization. On a CPU the fused
# operator is several times slower than the two operators (docs/LOG.md).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]

# The folder of a graph that ORT gets as bytes, and not as a file.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

ORT_VERSION: str = cast("Any", ort).__version__

# A session's destructor joins the session's threads. A forked child does not have them, and dies of
# a segmentation fault when it collects a session of its parent. So a child keeps them all.
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []
os.register_at_fork(after_in_child=lambda: _inherited.extend(_sessions))


def session_options(threads: int, *, native: bool = False) -> Any:  # noqa: ANN401
    """Options of a session.

    Args:
        threads: number of threads of a run; 0 leaves the number to ORT.
        native: whether the graph uses the operators of matryo-native.

    Raises:
        SettingsInvalid: matryo-native is missing, or of another version.
    """
    options = cast("Any", ort).SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # ORT would warn about the default value of apply_mask
    # A thread that spins between two operators would take a core from other runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if native:
        options.register_custom_ops_library(str(native_library()))
        # The weights of native operators are packed in the file. The few others stay mapped too.
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


class GraphSession:
    """A loaded graph. Several threads may call `run` at once.

    Args:
        path: the graph. Its data files are in the same folder.
        options: options made by `session_options`.
        output: the manifest's output; None reads the hidden states under their usual names.
        weights: the bundle that holds the large tensors; None if the graph names their files.

    Attributes:
        plan: the way to run the graph.

    Raises:
        ValueError: the graph has inputs or outputs that cannot be used.
        Exception: ORT cannot load the graph.
    """

    def __init__(
        self,
        path: Path,
        options: Any,  # noqa: ANN401 - ORT's options have no type
        output: Output | None = None,
        weights: Path | None = None,
    ) -> None:
        graph: str | bytes = str(path)
        if weights and (content := bundled_graph(path, weights)):
            graph = content
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights.parent))
        self._session: Any = ort.InferenceSession(
            graph,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_DISABLED_OPTIMIZERS,
        )
        _sessions.add(self._session)
        # ORT does not count an input with a default value, such as `apply_mask`, as an input, but
        # as an overridable initializer.
        declared = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self.plan = plan_graph(_ports(declared), _ports(self._session.get_outputs()), output)

    def end_profiling(self) -> str:
        """Path of the file with the times of all runs; needs options with `enable_profiling`."""
        return str(self._session.end_profiling())

    def n_padding(self, attention_mask: NDArray[np.int64]) -> int:
        """Padding tokens that the matrix products compute in a run of these texts."""
        if self.plan.takes_apply_mask:
            return 0
        n_texts, width = attention_mask.shape
        n_real = int(attention_mask.sum())
        if self.plan.n_tokens is not None:
            return n_texts * self.plan.n_tokens - n_real
        return 0 if self.plan.one_by_one else n_texts * width - n_real

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        *,
        apply_mask: bool,
        run_options: object = None,
    ) -> FloatArray:
        """Hidden states `(B, T, H)` float32, or `(B, H)` if the graph gives vectors.

        Values at padding are arbitrary.

        Args:
            input_ids: `(B, T)`, texts padded on the right.
            attention_mask: `(B, T)`, 1 at a token and 0 at padding.
            apply_mask: False makes attention ignore the mask, which must then be 1 everywhere.
            run_options: RunOptions of ORT; None for its defaults.

        Raises:
            ValueError: a text is longer than the graph can run.
            Exception: ORT cannot run the graph.
        """
        width, n_tokens = input_ids.shape[1], self.plan.n_tokens
        if n_tokens is not None:
            if width > n_tokens:
                raise ValueError(f"the graph runs {n_tokens} tokens, and a text has {width}")
            missing = ((0, 0), (0, n_tokens - width))
            input_ids, attention_mask = np.pad(input_ids, missing), np.pad(attention_mask, missing)
            apply_mask = True
        if not self.plan.one_by_one:
            states = self._run(input_ids, attention_mask, run_options, apply_mask=apply_mask)
        else:
            found: list[FloatArray] = []
            for ids, mask in zip(input_ids[:, None], attention_mask[:, None], strict=True):
                n = n_tokens or int(mask.sum())
                found.append(self._run(ids[:, :n], mask[:, :n], run_options, apply_mask=apply_mask))
            states = _joined(found)
        # Memory in order, like that of a graph which runs any number of tokens.
        return states if self.plan.gives_vectors else np.ascontiguousarray(states[:, :width])

    def _run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        run_options: object,
        *,
        apply_mask: bool,
    ) -> FloatArray:
        """The graph's output for a batch of the shape that the graph declares."""
        values = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if TOKEN_TYPE_IDS in self.plan.dtypes:  # only in graphs of other tools
            values[TOKEN_TYPE_IDS] = np.zeros_like(input_ids)
        if POSITION_IDS in self.plan.dtypes:
            positions = np.arange(input_ids.shape[1], dtype=np.int64)
            values[POSITION_IDS] = np.broadcast_to(positions, input_ids.shape)
        feeds: dict[str, Any] = {
            name: np.ascontiguousarray(value, dtype=self.plan.dtypes[name])
            for name, value in values.items()
        }
        if self.plan.takes_apply_mask:
            feeds[APPLY_MASK] = np.array(apply_mask)
        return cast("FloatArray", self._session.run([self.plan.output], feeds, run_options)[0])


def _ports(items: Sequence[Any]) -> list[Port]:
    """ORT's descriptions of inputs or outputs; a dimension of any size has a name or None there."""
    return [
        Port(
            str(item.name),
            str(item.type).removeprefix("tensor(").removesuffix(")"),
            # ORT gives an empty shape where the graph does not declare one.
            tuple(size if isinstance(size, int) else None for size in item.shape) or None,
        )
        for item in items
    ]


def _joined(found: Sequence[FloatArray]) -> FloatArray:
    """Outputs of single texts as those of one batch; missing tokens are 0."""
    if found[0].ndim < 3:  # noqa: PLR2004 - vectors, or a shape that a check will refuse
        return np.concatenate(found)
    width = max(states.shape[1] for states in found)
    return np.concatenate(
        [np.pad(states, ((0, 0), (0, width - states.shape[1]), (0, 0))) for states in found]
    )
