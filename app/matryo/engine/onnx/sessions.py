"""The session pool: one copy of the weights, run with few threads or with many."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from matryo.core.errors import ArtifactDamaged, InferenceFailed
from matryo.engine.onnx.padding import PaddedBatch
from matryo.engine.onnx.runtime import GraphSession, session_options
from matryo.engine.postprocess import FloatArray

_SHRINK_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a model uses the machine.

    Attributes:
        threads: threads of one of several concurrent runs.
        lone_threads: threads of a run beside which no other runs.
    """

    threads: int
    lone_threads: int


class SessionPool:
    """One graph at two thread counts; `run` may be called from several threads at once.

    Concurrent runs of few threads get the most out of the cores, one run of all of them is
    the quickest answer to a lone query (docs/LOG.md has the figures). The number of threads
    moves no bit of a result.

    Args:
        path: `model.onnx`, its data file beside it.
        config: use of the machine.

    Attributes:
        packs_tokens: products compute no padding.

    Raises:
        ArtifactDamaged: ORT cannot load it, or it lacks an input or output we rely on.
    """

    def __init__(self, path: Path, config: SessionConfig) -> None:
        self._lock = threading.Lock()
        self._n_running = 0
        self._shared_used = False
        self._shrunk_at = 0.0
        self._options: Any = cast("Any", ort).RunOptions()
        # An arena keeps its peak for good unless told to shrink: a text of 8192 tokens would
        # cost 400 MB from then on. It is told after long texts, and where time matters least.
        self._shrinking: Any = cast("Any", ort).RunOptions()
        for options in (self._options, self._shrinking):
            options.log_severity_level = 4  # what a run raises is told there
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        probe = PaddedBatch(np.zeros((1, 2), np.int64), np.ones((1, 2), np.int64))
        try:
            self._session = GraphSession(path, session_options(config.threads))
            self._lone = self._session
            if config.lone_threads != config.threads:
                self._lone = GraphSession(path, session_options(config.lone_threads))
            # Weights come into memory now; the other session maps the same pages once it runs.
            self._run(self._lone, probe, apply_mask=True, shrink=True)
        except Exception as exc:
            raise ArtifactDamaged(
                f"{path}: ONNX Runtime cannot load it: {exc}. Build it again with matryo build."
            ) from exc
        self.packs_tokens = self._session.packs_tokens

    def run(self, batch: PaddedBatch, *, apply_mask: bool) -> FloatArray:
        """Hidden states `(B, T, H)` float32; what stands at padding means nothing.

        Args:
            batch: the texts.
            apply_mask: whether attention looks at the mask; False wants a text alone. It may
                depend on nothing but the texts' own lengths: the two paths differ in the last
                bits.

        Raises:
            InferenceFailed: the run raised.
        """
        with self._lock:
            alone = not self._n_running
            session = self._lone if alone else self._session
            if not alone:
                self._shared_used = True
            elif self._shared_used and time.monotonic() - self._shrunk_at > _SHRINK_INTERVAL_S:
                # Load has gone: the arena that concurrent runs filled is emptied by this one.
                session, self._shared_used, self._shrunk_at = self._session, False, time.monotonic()
            self._n_running += 1
        try:
            return self._run(session, batch, apply_mask=apply_mask, shrink=alone or not apply_mask)
        finally:
            with self._lock:
                self._n_running -= 1

    def _run(
        self, session: GraphSession, batch: PaddedBatch, *, apply_mask: bool, shrink: bool
    ) -> FloatArray:
        try:
            return session.run(
                batch.input_ids,
                batch.attention_mask,
                apply_mask=apply_mask,
                run_options=self._shrinking if shrink else self._options,
            )
        except Exception as exc:
            shape = "x".join(map(str, batch.input_ids.shape))
            raise InferenceFailed(f"a run of {shape} tokens failed: {exc}") from exc

    def interrupt(self) -> None:
        """Make runs under way, and any later one, fail soon; for the end of the process."""
        self._options.terminate = True
        self._shrinking.terminate = True
