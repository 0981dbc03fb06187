"""The engines of a process share its cores by a plan and by one count of runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.catalog.reading import read_manifest
from matryo.engine import CoreUse, plan_cores
from matryo.engine.cores import RunCount
from matryo.engine.factory import load_engine
from matryo.engine.onnx.prepacked import prepack
from matryo.engine.onnx.runtime import GraphSession
from tests.checkpoints import make_model
from tests.conftest import build_tiny


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [
        (1, 0, 0, (1, 1, 1)),
        (2, 0, 0, (2, 1, 2)),
        (8, 0, 0, (8, 1, 8)),
        (32, 0, 0, (8, 4, 32)),
        (4, 2, 0, (2, 2, 4)),
        (4, 0, 3, (4, 3, 4)),
        (2, 1, 4, (1, 4, 4)),
        (2, 5, 0, (5, 1, 2)),
    ],
)
def test_plan(cores: int, workers: int, threads: int, expected: tuple[int, int, int]) -> None:
    """One run of one thread for each core, at most eight runs, unless the operator chose."""
    use = plan_cores(cores, workers, threads)
    assert (use.workers, use.threads, use.lone_threads) == expected


def test_only_the_first_of_several_runs_is_alone() -> None:
    """A run is alone if all earlier runs have ended, in whatever order."""
    runs = RunCount()
    assert [runs.enter(), runs.enter()] == [True, False]
    runs.leave()
    assert not runs.enter()
    runs.leave()
    runs.leave()
    assert runs.enter()


class TestTwoModels:
    """Two models on the same cores."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        """A store and a model for each."""
        return [tmp_path / "one", tmp_path / "two"]

    @pytest.mark.parametrize("shared", [True, False])
    def test_run_count(
        self, folders: list[Path], monkeypatch: pytest.MonkeyPatch, shared: bool
    ) -> None:
        """A run takes few threads while another model runs; without a shared count it takes all."""
        plan = plan_cores(2)
        engines = [self.load(folder, plan if shared else plan_cores(2)) for folder in folders]
        used: list[GraphSession] = []
        entered, leave = threading.Event(), threading.Event()
        run: Callable[..., Any] = GraphSession.run

        def spy(session: GraphSession, *args: Any, **kwargs: Any) -> Any:
            used.append(session)
            if len(used) == 1:
                entered.set()
                assert leave.wait(30)
            return run(session, *args, **kwargs)

        monkeypatch.setattr(GraphSession, "run", spy)
        ids = np.arange(4, 9)
        first = threading.Thread(target=engines[0].hidden_states, args=(ids,))
        first.start()
        assert entered.wait(30)
        engines[1].hidden_states(ids)
        leave.set()
        first.join()
        engines[1].hidden_states(ids)
        pools = [engine._session for engine in engines]
        beside = pools[1]._session if shared else pools[1]._lone
        assert used[:2] == [pools[0]._lone, beside]

    def load(self, folder: Path, use: CoreUse) -> Any:
        """A tiny model with prepacked weights, which has two sessions."""
        model = make_model(folder, "bert")
        artifact = build_tiny(folder, model)
        prepack(artifact)
        return load_engine(read_manifest(model.models / model.id), artifact, use)


def test_limits_follow_the_cores(tmp_path: Path) -> None:
    """The engine's limits say for how many runs and threads it was loaded."""
    model = make_model(tmp_path, "bert")
    artifact = build_tiny(tmp_path, model)
    manifest = read_manifest(model.models / model.id)
    alone = load_engine(manifest, artifact, plan_cores(2)).limits
    prepack(artifact)
    shared = load_engine(manifest, artifact, plan_cores(2)).limits
    assert (alone.workers, alone.threads) == (2, 2)  # one session, so one thread count
    assert (shared.workers, shared.threads) == (2, 1)
