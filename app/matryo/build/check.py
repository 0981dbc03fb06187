"""The check at the end of a build: the graph against the numpy forward, and against itself.

The check finds a wrong tensor name, layout, epsilon or activation. It cannot find out whether the
weights are those of the published model: the manifest's hashes and `matryo verify` check that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import FloatArray
from matryo.build.probe import probe_limits
from matryo.build.texts import TEXTS
from matryo.build.tokenizer import TokenizerFile
from matryo.catalog.manifest import Manifest
from matryo.catalog.output import Output
from matryo.core.choices import Precision
from matryo.core.errors import BuildFailed
from matryo.core.untrusted import refusing
from matryo.engine.onnx.runtime import GraphSession, session_options

MAX_ABS_ERROR = 1e-4
"""Largest allowed difference of a hidden state in fp32, relative to `_size`."""

_MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near hidden states are to the expected ones.

    A vector that a graph gives for a text counts as one hidden state.

    Attributes:
        max_abs_error: largest difference of a component of a hidden state. The difference is
            divided by the root mean square of the text's hidden states if that is over 1.
        min_cosine: smallest cosine of a text's mean hidden state to the expected mean.
    """

    max_abs_error: float
    min_cosine: float


def tokenize_texts(tokenizer: TokenizerFile, manifest: Manifest) -> list[NDArray[np.int64]]:
    """Token ids of each text of `TEXTS`, cut to 32 tokens and to the model's limit.

    Raises:
        CheckpointMismatch: the tokenizer cannot encode a text.
    """
    most = min(_MAX_TOKENS, manifest.tokenizer.max_tokens)
    return [np.array(ids or [0], np.int64) for ids in tokenizer.encode(TEXTS, most)]


def check_graph(
    graph_path: Path,
    tokenizer: TokenizerFile,
    expected: Sequence[FloatArray] | None,
    manifest: Manifest,
    precision: Precision,
    *,
    native: bool = False,
) -> Agreement:
    """Run each text alone and unmasked, then all in one batch; then probe the model's limits.

    The batch is padded and masked. A graph that runs one number of tokens pads every text; the
    batch then has other ids at padding, which may change nothing.

    Args:
        graph_path: the graph.
        tokenizer: the tokenizer of the graph.
        expected: hidden states of each text, `(T, H)`; None compares the batch with the runs of
            single texts.
        manifest: the model, which says the width of a hidden state and the accuracy that each
            precision must keep.
        precision: precision of the graph.
        native: whether the graph uses the operators of matryo-native.

    Raises:
        BuildFailed: the graph differs by more than its precision may, gives values that are not
            finite or hidden states of another width, or ORT cannot run the graph.
        CheckpointMismatch: the graph cannot run an id of the tokenizer, or a text as long as
            model.toml says.
    """
    texts = tokenize_texts(tokenizer, manifest)
    with refusing(lambda reason: BuildFailed(f"ONNX Runtime cannot run the graph: {reason}")):
        options = session_options(threads=0, native=native)
        if precision == "fp32" and not native:
            # ORT copies the weights that it prepacks. A check reads each weight only a few times,
            # so the copy would cost memory and save no time. q8 and q4 need the prepacking: ORT
            # computes MatMulNBits on another path without it.
            options.add_session_config_entry("session.disable_prepacking", "1")
        session = GraphSession(graph_path, options, manifest.output)
        run = session.run
        width = session.plan.n_tokens or max(map(len, texts))
        filler = 1 if session.plan.n_tokens else 0
        batch = np.stack(
            [np.pad(ids, (0, width - len(ids)), constant_values=filler) for ids in texts]
        )
        mask = (np.arange(width) < np.array([len(ids) for ids in texts])[:, None]).astype(np.int64)
        alone = [
            run(ids[None], np.ones((1, len(ids)), np.int64), apply_mask=False) for ids in texts
        ]
        together = run(batch, mask, apply_mask=True)
    _check_shapes(manifest.output, batch.shape, together)
    for found, ids in zip(alone, texts, strict=True):
        _check_shapes(manifest.output, (1, len(ids)), found)
    if session.plan.gives_vectors:
        lone, padded = alone, [together[row : row + 1] for row in range(len(texts))]
        _check_equal(lone, padded)
    else:
        lone = [hidden[0] for hidden in alone]
        padded = [hidden[: len(ids)] for hidden, ids in zip(together, texts, strict=True)]
    agreement = compare([*lone, *padded], [*(expected or lone), *(expected or lone)])
    _judge(agreement, manifest, precision, ready=expected is None)
    probe_limits(session, tokenizer, manifest, graph_path)
    return agreement


def _check_shapes(output: Output, shape: tuple[int, ...], found: FloatArray) -> None:
    """Raise BuildFailed unless the graph gives what the manifest says for tokens of this shape."""
    rows = shape[:1] if output.given else shape
    if found.shape != (*rows, output.graph_width) or found.dtype != np.float32:
        what = "vectors" if output.given else "hidden states"
        key = "output.dense" if output.dense else "output.dimensions.native"
        raise BuildFailed(
            f"the graph's {what} are {found.dtype} of the shape {found.shape} for {shape} tokens, "
            f"but must be float32 of {output.graph_width} components, which model.toml says in "
            f"{key}"
        )


def _check_equal(alone: Sequence[FloatArray], together: Sequence[FloatArray]) -> None:
    """Raise BuildFailed if a vector that the graph gives depends on more than its text."""
    for one, other in zip(alone, together, strict=True):
        if not np.array_equal(one, other):
            off = float(np.abs(one - other).max())
            raise BuildFailed(
                f"the graph gives a text another vector in a second run: they differ by {off:.3g}. "
                "A text's vector would depend on other texts or on chance; export the graph again "
                "with an attention mask and without random operators."
            )


def compare(found: Sequence[FloatArray], expected: Sequence[FloatArray]) -> Agreement:
    """How near hidden states are to the expected ones; one array `(T, H)` for each text."""
    pairs = list(zip(found, expected, strict=True))
    with np.errstate(all="ignore"):  # the results say it: NaN is no agreement
        errors = [float(np.abs(one - other).max()) / _size(other) for one, other in pairs]
        cosines = [_cosine(one.mean(0), other.mean(0)) for one, other in pairs]
    return Agreement(float(np.max(errors)), float(np.min(cosines)))


def _size(hidden: FloatArray) -> float:
    """Root mean square of hidden states, at least 1.

    The last norm of most encoders gives about 1. That of a decoder may give a hundred.
    """
    return max(1.0, float(np.sqrt(np.square(hidden, dtype=np.float64).mean())))


def _cosine(one: FloatArray, other: FloatArray) -> float:
    """Cosine of two vectors, computed in float64."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _judge(agreement: Agreement, manifest: Manifest, precision: Precision, *, ready: bool) -> None:
    """Raise BuildFailed if a graph is not as accurate as its precision must be."""
    remedy = (
        "Please report the failure with the model.toml and the versions of onnxruntime and numpy."
    )
    if precision == "fp32":
        if not agreement.max_abs_error <= MAX_ABS_ERROR:  # NaN fails too
            if ready:
                raise BuildFailed(
                    "the graph gives a text other hidden states in a batch than alone: they differ "
                    f"by {agreement.max_abs_error:.3g}, but at most {MAX_ABS_ERROR:g} is allowed. "
                    "Export the graph again with an attention mask that hides padding."
                )
            raise BuildFailed(
                "the graph's hidden states differ from the numpy forward's by "
                f"{agreement.max_abs_error:.3g}, but at most {MAX_ABS_ERROR:g} is allowed: the "
                f"graph does not compute the model. {remedy}"
            )
        return
    bound = manifest.precisions[precision].min_cosine
    if not agreement.min_cosine >= bound:
        raise BuildFailed(
            f"in {precision} a built-in text has cosine {agreement.min_cosine:.6f} to fp32, but "
            f"model.toml promises {bound:g}. Take another precision, or lower "
            f"precisions.{precision}.min_cosine if {agreement.min_cosine:.6f} is enough for you."
        )
