"""Workers: what a process that got an embedder by pickle loads, keeps, shares and raises."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo import Embedder
from matryo.core.errors import ContextTooLong, SetupError
from matryo.embedder import embedder as module
from matryo.engine.onnx.prepacked import prepack
from tests import checkpoints
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny
from tests.weights import mapped_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store is."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def model(root: Path) -> TinyModel:
    """A tiny model, built and prepacked."""
    model = make_model(root, "bert", max_tokens=64)
    prepack(build_tiny(root, model))
    return model


@pytest.fixture(autouse=True)
def own_models(model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue has the tiny model, here and in workers."""
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))


class Counted(Embedder):
    """An embedder of a user's own class, which says who embeds and how often models were loaded."""

    loads = 0

    def _loaded(self) -> Any:
        Counted.loads += self._local is None
        return super()._loaded()

    def who(self, text: str) -> tuple[int, int, list[float]]:
        """The process, the models it has loaded, and a vector."""
        vector = self.embed([text])[0].tolist()
        return os.getpid(), Counted.loads, vector


def test_a_pool_loads_the_model_once_for_each_process(
    root: Path, model: TinyModel, workers: Any
) -> None:
    """A pool pickles the embedder with every task; each process has one model all the same."""
    embedder = Counted(model.id, home=root / "home", threads=1)
    texts = [f"the sky {n}" for n in range(12)]
    with workers.Pool(2) as pool:
        answers = pool.map(embedder.who, texts, chunksize=1)
    assert {loads for _, loads, _ in answers} == {1}
    assert os.getpid() not in {pid for pid, _, _ in answers}
    with Embedder(model.id, home=root / "home") as own:
        vectors = np.array([vector for _, _, vector in answers], np.float32)
        assert np.array_equal(vectors, own.embed(texts))


def test_equal_embedders_are_one_in_a_worker(root: Path, model: TinyModel) -> None:
    """Unpickled embedders of equal arguments are one object; of others, another one."""
    made = [
        Embedder(model.id, home=root / "home", dimensions=size, text_column=column)
        for size, column in ((8, "a"), (8, "a"), (16, "a"), (8, "b"))
    ]
    first, second, third, fourth = (pickle.loads(pickle.dumps(one)) for one in made)  # noqa: S301
    assert first is second
    assert len({id(one) for one in (first, third, fourth)}) == 3
    assert first is not made[0]


def test_a_process_keeps_few_models() -> None:
    """A process that works for many jobs frees the models that were used longest ago."""
    before = pickle.dumps(Embedder("first"))
    first = id(pickle.loads(before))  # noqa: S301 - our own
    assert id(pickle.loads(before)) == first  # noqa: S301
    for n in range(4):
        pickle.loads(pickle.dumps(Embedder(f"model-{n}")))  # noqa: S301
    info = module._of_this_process.cache_info()
    assert (info.currsize, info.maxsize) == (4, 4)
    n_made = info.misses
    pickle.loads(before)  # noqa: S301
    assert module._of_this_process.cache_info().misses == n_made + 1


def test_errors_arrive(root: Path, model: TinyModel, workers: Any) -> None:
    """A worker's error is raised in the caller, with its attributes, and ends no pool."""
    embedder = Embedder(model.id, home=root / "home", threads=1)
    with workers.Pool(1) as pool:
        with pytest.raises(ContextTooLong) as caught:
            pool.apply(embedder, (["a", "the " * 200],))
        assert (caught.value.index, caught.value.max_tokens) == (1, 64)
        assert pool.apply(embedder, (["a"],)).shape == (1, 32)


def test_a_failed_build_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is in the error: nobody sees the standard error of a worker."""
    model = make_model(tmp_path, "bert")
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    embedder = Embedder(model.id, home=tmp_path / "home")
    context: Any = multiprocessing.get_context("spawn")
    with (
        context.Pool(1) as pool,
        pytest.raises(SetupError, match=r"tiny could not be made ready: .*no source") as caught,
    ):
        pool.apply(embedder, (["a"],))
    assert "standard error" not in caught.value.message


def _embed_and_wait(embedder: Embedder, pipe: Any) -> None:
    embedder.embed(["the sky is blue"])
    pipe.send(os.getpid())
    pipe.recv()  # until the parent has looked
    embedder.close()


def test_workers_share_one_copy_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes take the memory of one: every page of weights is mapped, and none is copied."""
    monkeypatch.setattr(checkpoints, "HIDDEN", 128)
    monkeypatch.setattr(checkpoints, "INNER", 2048)
    model = make_model(tmp_path, "bert", max_tokens=64)
    artifact = build_tiny(tmp_path, model)
    prepack(artifact)
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    home = tmp_path / "home"
    context: Any = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        worker = context.Process(
            target=_embed_and_wait, args=(Embedder(model.id, home=home, threads=1), theirs)
        )
        worker.start()
        pipes.append(ours)
        workers.append(worker)
    pids = [pipe.recv() for pipe in pipes]  # both have embedded before either is looked at
    found = [mapped_weights(pid, home) for pid in pids]
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send("seen")
        worker.join(30)
    layers = 4 * 2 * (4 * 128 * 128 + 2 * 128 * 2048)  # bytes of the matrices that a run reads
    assert all(weights.resident > layers for weights in found)
    assert sum(weights.private for weights in found) == 0
    assert sum(weights.own for weights in found) < 1.1 * max(weights.resident for weights in found)
