"""The canary: the same bits as a request gets, computed once, in nobody's name."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from matryo.core.choices import Precision
from matryo.core.errors import Abandoned, InferenceFailed, Overloaded, Stopping
from matryo.core.metrics import Metrics
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import SchedulerConfig
from matryo.service import LocalService, Options, Service, ServiceConfig, Texts
from matryo.service.canary import N_COMPONENTS, TEXTS, VERSION, input_types_of
from matryo.service.choices import Defaults
from matryo.service.limits import RequestLimits
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.fakes import MINILM, NOMIC, FakeEngine

_HERE = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from matryo.catalog.reading import read_manifest
from matryo.core.metrics import Metrics
from matryo.engine import CoreUse
from matryo.engine.onnx import OnnxEngine
from matryo.service import LocalService, Service, ServiceConfig
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store

manifest = read_manifest(Path(sys.argv[1]))
artifact = find_artifact(Store(Path(sys.argv[2]), native=False), manifest, sys.argv[3])
engine = OnnxEngine(manifest, artifact, CoreUse(workers=1, threads=1, lone_threads=1))
service = Service([engine], ServiceConfig(), Metrics(CollectorRegistry()))
with LocalService(lambda: service) as local:
    canary = local.canary()
    print(*(canary.sha256(kind) for kind in canary.vectors))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    """A tiny Nomic model with prompts, and the folder that it is built in."""
    root = tmp_path_factory.mktemp("canary")
    return root, make_model(root, "nomic_bert", prompts=True, max_tokens=128, layer_norm=True)


def make(engine: FakeEngine, config: ServiceConfig | None = None) -> Service:
    """A service of one engine, not started."""
    return Service([engine], config or ServiceConfig(), Metrics(CollectorRegistry()))


@pytest.fixture
async def service(engine: FakeEngine) -> AsyncIterator[Service]:
    """A started service on the fake engine."""
    async with make(engine) as service:
        yield service
        engine.gate.set()


def test_the_texts_are_for_good() -> None:
    """Another text would make every record of an index worthless: raise VERSION with one."""
    digest = hashlib.sha256("\0".join(TEXTS).encode()).hexdigest()
    assert (VERSION, digest) == (
        1,
        "164d88b7fc08784bf29fbcd2e568bd943d3b18e30143cd00296dc1364ece99de",
    )


def test_the_texts_take_every_prompt() -> None:
    """No text begins with the prompt of a model, which would keep the prompt away."""
    starts = ("search_", "query:", "passage:", "Represent", "Instruct", "classification", "title:")
    assert not [text for text in TEXTS if text.startswith(starts)]


@pytest.mark.parametrize("precision", get_args(Precision))
async def test_bits_of_a_request(tiny: tuple[Path, TinyModel], precision: Precision) -> None:
    """Every matrix has the bits that a request gets, alone, in company, and in another process."""
    root, model = tiny
    engine = load_tiny(model, build_tiny(root, model, precision))
    async with Service([engine], ServiceConfig(), Metrics(CollectorRegistry())) as service:
        canary = await service.canary(engine)
        assert list(canary.vectors) == ["query", "document", "none"]
        for kind, matrix in canary.vectors.items():
            size = engine.manifest.output.dimensions.native
            options = Options(input_type=kind, dimensions=size, truncate=True)
            company = [*TEXTS, *(f"the sky is {n}" for n in range(40))]
            together = (await service.embed(options, Texts(company))).vectors[: len(TEXTS)]
            alone = [await service.embed(options, Texts([text])) for text in TEXTS]
            assert matrix.shape == (len(TEXTS), size)
            assert matrix.dtype == np.float32
            assert together.tobytes() == matrix.tobytes()
            assert b"".join(answer.vectors.tobytes() for answer in alone) == matrix.tobytes()
            assert canary.sha256(kind) == hashlib.sha256(matrix.tobytes()).hexdigest()
            assert np.array_equal(canary.components(kind), matrix[:, :N_COMPONENTS])
        digests = [canary.sha256(kind) for kind in canary.vectors]
    assert len(set(digests)) == 3
    command = [sys.executable, "-c", _HERE, model.models / model.id, root / "home", precision]
    run = partial(subprocess.run, command, capture_output=True, check=True, text=True)
    done = await asyncio.to_thread(run)
    assert done.stdout.split() == digests


async def test_one_computation(engine: FakeEngine, service: Service) -> None:
    """Any number of callers share one computation, and one that leaves does not end it."""
    before = len(engine.batches)
    engine.gate.clear()
    asking = [asyncio.create_task(service.canary(engine)) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    engine.gate.set()
    first, *others = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert len({id(canary) for canary in others}) == 1
    assert await service.canary(engine) is others[0]
    n_rows = sum(map(len, engine.batches[before:]))
    assert n_rows == len(TEXTS) * len(input_types_of(NOMIC))


async def test_costs_nobody(engine: FakeEngine, service: Service) -> None:
    """No text and no token is counted, and the memory is given back."""
    await service.canary(engine)
    registry = service._metrics.registry
    labels = {"model": NOMIC.id, "input_type": "query", "dimensions": "768"}
    assert not registry.get_sample_value("matryo_texts_total", labels)
    assert service.budget.held == 0


async def test_without_prompts() -> None:
    """A model without prompts has the vectors of no prompt alone."""
    engine = FakeEngine(MINILM)
    async with make(engine) as service:
        assert list((await service.canary(engine)).vectors) == ["none"]


async def test_the_operators_limits_have_no_part() -> None:
    """Fixed choices and limits of a request change nothing."""
    engine = FakeEngine()
    plain = FakeEngine()
    fixed = ServiceConfig(
        defaults=Defaults(
            "query", 64, strict_dimensions=True, locked=frozenset(("input_type", "dimensions"))
        ),
        limits=RequestLimits(1, 1),
    )
    async with make(engine, fixed) as ours, make(plain) as others:
        found, expected = await ours.canary(engine), await others.canary(plain)
        facts = ours.facts(engine, "0")
    assert found.vectors.keys() == expected.vectors.keys()
    for kind in expected.vectors:
        assert found.sha256(kind) == expected.sha256(kind)
    assert facts.input_types == ("query", "search_query")
    assert (facts.dimensions.default, facts.dimensions.can_be_cut) == (64, False)


async def test_no_room(engine: FakeEngine) -> None:
    """A full queue refuses the canary; once there is room, the next to ask gets it."""
    config = ServiceConfig(scheduler=SchedulerConfig(queue_tokens=10))
    async with make(engine, config) as service:
        engine.gate.clear()
        ahead = asyncio.create_task(service.embed(Options(), Texts(["a " * 20])))
        while not service._scheduler.n_requests:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded):
            await service.canary(engine)
        engine.gate.set()
        await ahead
        assert (await service.canary(engine)).vectors
        service.drain(5)
        assert (await service.canary(engine)).vectors  # it is kept


async def test_draining(engine: FakeEngine, service: Service) -> None:
    """Nothing is computed once the service stops."""
    service.drain(5)
    with pytest.raises(Stopping):
        await service.canary(engine)


async def test_closing_ends_the_computation(engine: FakeEngine) -> None:
    """A service that closes leaves no task behind."""
    service = make(engine)
    async with service:
        engine.gate.clear()
        asking = asyncio.create_task(service.canary(engine))
        while not service._scheduler.n_requests:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.05, engine.gate.set)
    with pytest.raises(Abandoned):
        await asking
    assert service._canaries
    assert not service._canaries._tasks


def test_local(engine: FakeEngine) -> None:
    """A synchronous caller gets the matrices by the model's name."""
    with LocalService(lambda: make(engine)) as local:
        assert set(local.canary(NOMIC.id).vectors) == {*NOMIC.prompts, "none"}


async def test_goes_last(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every query goes before the canary, and no caller's share pays for it."""
    given: dict[str, object] = {}
    run = service._scheduler.run

    async def note(*args: Any, **kwargs: Any) -> FloatArray:
        given.update(kwargs)
        return await run(*args, **kwargs)

    monkeypatch.setattr(service._scheduler, "run", note)
    await service.canary(engine)
    assert given == {"priority": "bulk"}


async def test_a_model_whose_run_fails(engine: FakeEngine, service: Service) -> None:
    """The error is that of the run; a later caller has it computed anew."""

    def fail(_: object) -> None:
        raise ValueError("broken")

    engine.before = fail
    with pytest.raises(InferenceFailed):
        await service.canary(engine)
    engine.before = lambda _: None
    assert (await service.canary(engine)).vectors
