"""The service without a transport: one call, its errors, and what a leaving caller does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from matryo.core.errors import (
    CallerGone,
    DeadlinePassed,
    InvalidRequest,
    NotReady,
    Overloaded,
    SettingsInvalid,
    TooManyTexts,
    UnknownModel,
)
from matryo.core.metrics import Metrics
from matryo.core.tracing import NO_SPAN
from matryo.engine import TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import ANYONE, Tenant
from matryo.service import Caller, LocalService, Options, Service, ServiceConfig, Texts
from matryo.service.choices import Defaults
from matryo.service.limits import RequestLimits
from tests.checkpoints import make_model
from tests.conftest import build_tiny, load_tiny
from tests.fakes import MINILM, NOMIC, FakeEngine


def make(engine: FakeEngine, config: ServiceConfig | None = None) -> Service:
    """A service of one engine, not started."""
    return Service([engine], config or ServiceConfig(), Metrics(CollectorRegistry()))


@pytest.fixture
async def service(engine: FakeEngine) -> AsyncIterator[Service]:
    """A started service on the fake engine."""
    async with make(engine) as service:
        yield service
        engine.gate.set()


def hold(engine: FakeEngine) -> threading.Event:
    """Close the engine's gate; the event is set once a run waits before the gate."""
    engine.gate.clear()
    waiting = threading.Event()
    wait = engine.gate.wait

    def announce(timeout: float | None = None) -> bool:
        waiting.set()
        return wait(timeout)

    engine.gate.wait = announce
    return waiting


async def test_texts_without_a_token(tmp_path: Path) -> None:
    """A text without a token has a vector of zeros, costs no token, and is counted as unknown."""
    bare = "add_special_tokens = false\ndrop_unknown = true"
    model = make_model(tmp_path, "model2vec", tokenizer=bare)
    engine = load_tiny(model, build_tiny(tmp_path, model))
    texts = ["\u2603", "the sky", " ", "the \u2603 sky"]
    async with Service([engine], ServiceConfig(), Metrics(CollectorRegistry())) as service:
        answer = await service.embed(Options(), Texts(texts))
        nothing = await service.embed(Options(embedding_type="int8"), Texts(["\u2603"]))
    assert not answer.vectors[[0, 2]].any()
    assert answer.vectors[1].any()
    assert np.array_equal(answer.vectors[1], answer.vectors[3])
    assert answer.n_tokens == 4
    assert answer.unknown == (0, 3)
    assert nothing.n_tokens == 0
    assert not nothing.vectors.any()


async def test_answer(service: Service, engine: FakeEngine) -> None:
    """Vectors, counts, fingerprint and warnings of one request, in the order of its texts."""
    options = Options(input_type="search_query", dimensions=100, embedding_type="int8")
    answer = await service.embed(options, Texts(["a b", "c"]))
    expected = [engine.expected(f"search_query: {text}", 100) for text in ("a b", "c")]
    assert np.array_equal(answer.vectors, np.stack(expected))
    assert (answer.model, answer.input_type) == (NOMIC.id, "query")
    assert (answer.n_tokens, answer.truncated) == (5 + 4, ())
    assert answer.fingerprint == f"{NOMIC.id}/fp32/fake/query/100/int8"
    assert len(answer.warnings) == 1


async def test_texts_are_counted_before_anything_else(engine: FakeEngine) -> None:
    """A request with too many texts is refused before its model is looked up."""
    config = ServiceConfig(limits=RequestLimits(max_texts=2))
    async with make(engine, config) as service:
        with pytest.raises(TooManyTexts, match="maximum length 2, but got an array with length 3"):
            await service.embed(Options(model="nothing"), Texts(["a", "b", "c"]))
        with pytest.raises(UnknownModel):
            await service.embed(Options(model="nothing"), Texts(["a", "b"]))


async def test_a_caller_that_leaves_frees_its_room(service: Service, engine: FakeEngine) -> None:
    """The work is cancelled at once, and the error is one that nobody answers."""
    waiting, gone = hold(engine), asyncio.Event()

    running = asyncio.create_task(service.embed(Options(), Texts(["a"]), gone=gone.wait))
    assert await asyncio.to_thread(waiting.wait, 30)
    gone.set()
    with pytest.raises(CallerGone):
        await running
    assert service._scheduler.n_requests == 0


async def test_a_caller_that_leaves_as_its_answer_arrives(
    service: Service, engine: FakeEngine
) -> None:
    """Leaving in the very turn of the loop in which the work ends cancels nothing after it."""
    waiting = hold(engine)
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    came: list[str] = []

    async def request() -> None:
        try:
            await service.embed(Options(), Texts(["a"]), gone=lambda: gone)
            came.append("answer")
        except CallerGone:
            came.append("gone")
        await asyncio.sleep(0)  # what a door does next must not be cancelled
        await asyncio.sleep(0)
        came.append("went on")

    running = asyncio.create_task(request())
    assert await asyncio.to_thread(waiting.wait, 30)
    (ticket,) = service._scheduler._queue._tickets
    ticket.future.add_done_callback(lambda _: gone.set_result(None))
    engine.gate.set()
    await running
    assert came in (["answer", "went on"], ["gone", "went on"])


class Held:
    """Holds the tokenising of every large text of an engine; its gate is opened at the end."""

    def __init__(self, engine: FakeEngine) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.texts: list[str] = []
        engine.on_tokenize = self._hold

    def _hold(self, texts: Sequence[str]) -> None:
        if texts[0].startswith("large"):
            self.texts.append(texts[0])
            self.begun.release()
            assert self.gate.wait(30)


def large(n: int, n_texts: int = 1) -> Texts:
    """A text for a thread that takes no long ones, or several such texts."""
    return Texts([f"large {n} " + "w" * 40_000] * n_texts)


@pytest.mark.timeout(20)
async def test_short_requests_pass_large_ones(service: Service, engine: FakeEngine) -> None:
    """Twenty short requests are answered while eight large ones are being tokenised."""
    held = Held(engine)
    running = [asyncio.create_task(service.embed(Options(), large(n, 3))) for n in range(8)]
    try:
        assert await asyncio.to_thread(held.begun.acquire, timeout=10)
        short = Texts(["short " + "w " * 1000])  # too much for the event loop
        answers = await asyncio.gather(*[service.embed(Options(), short) for _ in range(20)])
        assert len(answers) == 20
        assert not any(task.done() for task in running)
    finally:
        held.gate.set()
    assert len(await asyncio.gather(*running)) == 8


async def test_a_caller_that_leaves_is_not_tokenised(service: Service, engine: FakeEngine) -> None:
    """The pieces of a caller that is gone are dropped, those that wait and those to come."""
    held, gone = Held(engine), asyncio.Event()
    first = asyncio.create_task(service.embed(Options(), large(0)))
    assert await asyncio.to_thread(held.begun.acquire, timeout=10)
    second = asyncio.create_task(service.embed(Options(), large(1, 9), gone=gone.wait))
    while not any(long for _, long in service.pool._turns._lanes.values()):
        await asyncio.sleep(0)
    gone.set()
    with pytest.raises(CallerGone):
        await second
    held.gate.set()
    await first
    assert [text[:7] for text in held.texts] == ["large 0"]
    assert not service.pool._jobs


async def test_texts_that_wait_too_long_are_refused(engine: FakeEngine) -> None:
    """Work that would wait longer than the bound, or than its caller, is refused at once."""
    async with make(engine, ServiceConfig(max_wait_s=1e-6)) as service:
        held = Held(engine)
        first = asyncio.create_task(service.embed(Options(), large(0)))
        assert await asyncio.to_thread(held.begun.acquire, timeout=10)
        with pytest.raises(Overloaded, match="characters to tokenise") as caught:
            await service.embed(Options(), large(1))
        assert caught.value.used == len(large(0).strings[0])
        await service.embed(Options(), Texts(["short " + "w " * 1000]))  # goes before the large one
        held.gate.set()
        await first
        await service.embed(Options(), large(2))


async def test_closing_fails_what_waits(engine: FakeEngine) -> None:
    """A service that closes answers the requests whose texts still wait to be tokenised."""
    service = make(engine)
    await service.__aenter__()
    held = Held(engine)
    running = [asyncio.create_task(service.embed(Options(), large(n, 3))) for n in range(3)]
    assert await asyncio.to_thread(held.begun.acquire, timeout=10)
    closing = asyncio.create_task(service.__aexit__(None, None, None))
    done, _ = await asyncio.wait(running, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert done
    held.gate.set()
    await closing
    for error in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(error, NotReady)


async def test_deadline(service: Service, engine: FakeEngine) -> None:
    """A request that is not done in the time its caller announced is dropped."""
    hold(engine)
    with pytest.raises(DeadlinePassed, match=r"within 0\.01 s"):
        await service.embed(Options(deadline_s=0.01), Texts(["a"]))
    assert service._scheduler.n_requests == 0


async def test_what_the_scheduler_learns_of_a_caller(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patience that is left after tokenising, the priority, the tenant, the name for the log."""
    checked: list[object] = []
    learnt: list[dict[str, Any]] = []

    async def run(*_: object, **facts: Any) -> FloatArray:
        learnt.append(facts)
        return np.ones((1, 768), np.float32)

    monkeypatch.setattr(service._scheduler, "check_room", lambda *facts: checked.append(facts))
    monkeypatch.setattr(service._scheduler, "run", run)
    options = Options(deadline_s=30.0, priority="bulk")
    caller = Caller("search", 2.0)
    await service.embed(options, Texts(["a"]), caller, request_id="this one")
    await service.embed(Options(), Texts(["a"]))
    tenant = Tenant("search", 2.0)
    assert checked == [("bulk", 30.0, tenant), ("online", None, ANYONE)]
    assert 20 < learnt[0].pop("patience_s") < 30
    assert [facts.pop("span") for facts in learnt] == [NO_SPAN, NO_SPAN]
    assert learnt[0] == {
        "normalize": True,
        "priority": "bulk",
        "request_id": "this one",
        "tenant": tenant,
    }
    assert learnt[1] == {
        "normalize": True,
        "priority": "online",
        "patience_s": None,
        "request_id": None,
        "tenant": ANYONE,
    }


async def test_drain(service: Service) -> None:
    """A draining service admits nothing, and says why it is not ready."""
    service.drain(30)
    with pytest.raises(NotReady):
        await service.embed(Options(), Texts(["a"]))
    assert service.why_not_ready() == "draining"


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        (
            Defaults(input_type="search"),
            "MATRYO_DEFAULT_INPUT_TYPE is 'search'.*choose one of query",
        ),
        (
            Defaults(dimensions=769),
            "MATRYO_DIMENSIONS is 769, but nomic-embed-text-v1.5 gives 1 to",
        ),
    ],
)
def test_defaults_that_no_model_takes(defaults: Defaults, message: str) -> None:
    """The operator hears of a useless default before the first caller does."""
    with pytest.raises(SettingsInvalid, match=message):
        make(FakeEngine(), ServiceConfig(defaults=defaults))


def test_a_default_for_another_model(engine: FakeEngine) -> None:
    """A default that one of the served models knows is fine; the others take documents."""
    defaults = Defaults(input_type="clustering")
    config = ServiceConfig(defaults=defaults)
    bare = FakeEngine(
        NOMIC.model_copy(update={"id": "bare", "aliases": (), "prompts": {"query": "q: "}})
    )
    service = Service([engine, bare], config, Metrics(CollectorRegistry()))
    with LocalService(lambda: service) as local:
        assert local.embed(Options(), Texts(["a"])).input_type == "clustering"
        assert local.embed(Options(model="bare"), Texts(["a"])).input_type == "none"


class TestLocal:
    """Synchronous callers get the same answers."""

    def test_windows_in_order(self, engine: FakeEngine) -> None:
        """Answers of a long stream come in order, and an error ends the stream at its window."""
        texts = [[f"w{n}"] for n in range(20)]
        with LocalService(lambda: make(engine)) as local:
            answers = list(local.embed_windows(Options(), (Texts(window) for window in texts)))
            for window, answer in zip(texts, answers, strict=True):
                assert np.array_equal(
                    answer.vectors[0], engine.expected(f"search_document: {window[0]}")
                )
            stream = local.embed_windows(Options(dimensions=9999), iter([Texts(["a"])] * 3))
            with pytest.raises(Exception, match="9999"):
                list(stream)
            assert len(local.embed(Options(), Texts(["still works"])).vectors) == 1

    def test_closing(self, engine: FakeEngine) -> None:
        """Closing ends thread and engine, and closing twice is fine."""
        before = threading.active_count()
        local = LocalService(lambda: make(engine))
        with local:
            local.embed(Options(), Texts(["a"]))
        local.close()
        assert engine.closed
        assert threading.active_count() == before

    def test_a_model_that_cannot_run(self) -> None:
        """A service that cannot start leaves no thread behind."""
        engine = FakeEngine(MINILM)

        def explode(_: Sequence[TokenIds]) -> None:
            raise RuntimeError("broken")

        engine.before = explode
        before = threading.active_count()
        with pytest.raises(Exception, match="failed"), LocalService(lambda: make(engine)):
            pass
        assert threading.active_count() == before


async def test_vectors_of_any_length_have_no_small_numbers(service: Service) -> None:
    """int8 has a scale for unit vectors: with `normalize` False, int8 is refused and signs are not."""
    for kind in ("int8", "uint8"):
        with pytest.raises(InvalidRequest, match="unit length"):
            await service.embed(Options(embedding_type=kind, normalize=False), Texts(["a"]))
    answer = await service.embed(Options(embedding_type="binary", normalize=False), Texts(["a"]))
    assert answer.fingerprint.endswith("/binary")  # the signs are the same
