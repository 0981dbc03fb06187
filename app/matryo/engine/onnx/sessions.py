"""The sessions of one graph: one with few threads, and one with a thread for every core."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from matryo.catalog.output import Output
from matryo.core.errors import ArtifactDamaged, InferenceFailed
from matryo.core.native import native_watcher
from matryo.engine.cores import CoreUse
from matryo.engine.interrupt import Interrupt, Interrupted
from matryo.engine.onnx.padding import PaddedBatch
from matryo.engine.onnx.runtime import GraphSession, session_options
from matryo.engine.postprocess import FloatArray

_SHRINK_INTERVAL_S = 5.0


class SessionPool:
    """One graph, loaded with two numbers of threads. Several threads may call `run` at once.

    Concurrent runs of few threads compute the most tokens a second. A single run on every core has
    the lowest latency (docs/LOG.md has the measurements). A run takes every core if it is the only
    run of all engines that share `use`. The number of threads changes no bit of a result.

    Args:
        path: `model.onnx`. Its data file is in the same folder.
        use: the cores.
        output: the manifest's output; None reads the hidden states under their usual names.
        weights: the bundle that holds the large tensors; None if the graph names their files.
        native: whether the graph uses the operators of matryo-native.

    Raises:
        ArtifactDamaged: ORT cannot load the graph, or an input or output is missing.
    """

    def __init__(
        self,
        path: Path,
        use: CoreUse,
        output: Output | None = None,
        weights: Path | None = None,
        *,
        native: bool = False,
    ) -> None:
        self._runs = use.runs
        self._lock = threading.Lock()
        self._shared_used = False
        self._shrunk_at = 0.0
        self._is_closed = False
        self._watch = native_watcher() if native else None
        self._options, self._shrinking = _run_options(), _run_options(shrink=True)
        self._interruptible: set[Any] = set()  # the options of those runs under way
        probe = PaddedBatch(np.zeros((1, 2), np.int64), np.ones((1, 2), np.int64))
        try:
            options = session_options(use.threads, native=native)
            self._session = GraphSession(path, options, output, weights)
            self._lone = self._session
            if use.lone_threads != use.threads:
                options = session_options(use.lone_threads, native=native)
                self._lone = GraphSession(path, options, output, weights)
            # This run loads the weights into memory. The other session maps the same pages.
            self._run(self._lone, probe, apply_mask=True, shrink=True)
        except Exception as exc:
            raise ArtifactDamaged(
                f"ONNX Runtime cannot load {path}: {exc}. Build the model again with matryo build."
            ) from exc

    def n_padding(self, batch: PaddedBatch) -> int:
        """Padding tokens that the matrix products compute in a run of this batch."""
        return self._session.n_padding(batch.attention_mask)

    def run(
        self, batch: PaddedBatch, *, apply_mask: bool, interrupt: Interrupt | None = None
    ) -> FloatArray:
        """Hidden states `(B, T, H)` float32, or `(B, H)` if the graph gives vectors.

        Values at padding are arbitrary.

        Args:
            batch: the texts.
            apply_mask: False makes attention ignore the mask; only for a batch of one text. The
                caller may choose by a text's own length only, because the last bits of a result
                depend on the choice.
            interrupt: ends the run between two nodes of the graph; within a node, if the node
                is a native operator.

        Raises:
            InferenceFailed: the run raised.
            Interrupted: `interrupt` was set.
        """
        lone = self._runs.enter()
        try:
            session, shrink = self._choose(lone=lone), lone or not apply_mask
            return self._run(
                session, batch, apply_mask=apply_mask, shrink=shrink, interrupt=interrupt
            )
        finally:
            self._runs.leave()

    def _choose(self, *, lone: bool) -> GraphSession:
        """The session for a run. `lone` says whether it is the only run."""
        with self._lock:
            if not lone:
                self._shared_used = True
                return self._session
            now = time.monotonic()
            if self._shared_used and now - self._shrunk_at > _SHRINK_INTERVAL_S:
                # Concurrent runs have ended. This run shrinks the arena that they filled.
                self._shared_used, self._shrunk_at = False, now
                return self._session
            return self._lone

    def _run(
        self,
        session: GraphSession,
        batch: PaddedBatch,
        *,
        apply_mask: bool,
        shrink: bool,
        interrupt: Interrupt | None = None,
    ) -> FloatArray:
        try:
            with self._run_options(interrupt, shrink=shrink) as options:
                return session.run(
                    batch.input_ids,
                    batch.attention_mask,
                    apply_mask=apply_mask,
                    run_options=options,
                )
        except Exception as exc:
            if interrupt and interrupt.is_set:
                raise Interrupted from exc
            shape = "x".join(map(str, batch.input_ids.shape))
            raise InferenceFailed(f"a run of {shape} tokens failed: {exc}") from exc

    @contextmanager
    def _run_options(self, interrupt: Interrupt | None, *, shrink: bool) -> Generator[Any]:
        """ORT's options of a run."""
        if interrupt is None:
            yield self._shrinking if shrink else self._options
            return
        options = _run_options(shrink=shrink)
        with self._lock:
            options.terminate = self._is_closed
            self._interruptible.add(options)

        def terminate() -> None:
            options.terminate = True

        interrupt.watch(terminate)
        if self._watch:
            self._watch(interrupt.flag)
        try:
            yield options
        finally:
            if self._watch:
                self._watch(None)
            interrupt.watch(None)
            with self._lock:
                self._interruptible.remove(options)

    def interrupt(self) -> None:
        """Make current and later runs fail, so that the process can end soon."""
        with self._lock:
            self._is_closed = True
            for options in (self._options, self._shrinking, *self._interruptible):
                options.terminate = True


def _run_options(*, shrink: bool = False) -> Any:  # noqa: ANN401 - ORT has no types
    """ORT's options of a run.

    Args:
        shrink: whether the run gives memory back. ORT's arena keeps everything otherwise: after
            one text of 8192 tokens, 400 MB. Runs of long texts and single runs shrink the arena.
    """
    options = cast("Any", ort).RunOptions()
    options.log_severity_level = 4  # ORT also raises every error, and the raised errors are logged
    if shrink:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
