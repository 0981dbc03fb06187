"""A text has the same vector alone, in any batch, and with any number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from matryo.core.errors import ArtifactDamaged, InferenceFailed
from matryo.engine import Interrupt, Interrupted, TokenIds, plan_cores
from matryo.engine.onnx import OnnxEngine
from matryo.engine.onnx import engine as engine_module
from matryo.engine.onnx.interface import SOLO_TOKENS
from matryo.engine.onnx.padding import PaddedBatch
from matryo.engine.onnx.sessions import SessionPool
from matryo.engine.postprocess import FloatArray
from tests.checkpoints import TinyModel
from tests.conftest import build_tiny, load_tiny

Tiny = tuple[TinyModel, OnnxEngine]


def texts_of(lengths: list[int], seed: int = 0) -> list[TokenIds]:
    """Random texts of given lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 60, length) for length in lengths]


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_nomic"])
def test_alone_as_in_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    """Vectors have the same bits alone and in shuffled batches of short and long texts."""
    _, engine = request.getfixturevalue(kind)
    lengths = [2, 3, 5, 8, 13, 21, 34, 55, 89, 144, SOLO_TOKENS, SOLO_TOKENS + 1, 700]
    texts = texts_of(lengths)
    alone = [engine.embed([text], [32]).embeddings[0] for text in texts]
    rng = np.random.default_rng(1)
    for _ in range(6):
        order = rng.permutation(len(texts))[: rng.integers(2, len(texts) + 1)]
        result = engine.embed([texts[i] for i in order], [32] * len(order))
        for vector, i in zip(result.embeddings, order, strict=True):
            assert np.array_equal(vector, alone[i]), lengths[i]


def test_threads_change_nothing(tmp_path_factory: pytest.TempPathFactory, tiny_nomic: Tiny) -> None:
    """Vectors have the same bits with one thread and with three."""
    model, engine = tiny_nomic
    artifact = build_tiny(tmp_path_factory.mktemp("threads"), model)
    other = load_tiny(model, artifact, threads=3)
    texts = texts_of([5, 40, 300, 900])
    mine = engine.embed(texts, [32] * 4).embeddings
    theirs = other.embed(texts, [32] * 4).embeddings
    assert all(map(np.array_equal, mine, theirs))


def test_only_long_texts_run_alone_and_unmasked(
    tiny_bert: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a text runs with a mask depends on its own length only."""
    _, engine = tiny_bert
    runs: list[tuple[tuple[int, ...], bool]] = []
    session = engine._session
    run = session.run

    def spy(batch: PaddedBatch, *, apply_mask: bool, interrupt: None) -> FloatArray:
        runs.append((batch.input_ids.shape, apply_mask))
        return run(batch, apply_mask=apply_mask, interrupt=interrupt)

    monkeypatch.setattr(session, "run", spy)
    engine.embed(texts_of([4, SOLO_TOKENS + 1, 6, 1000]), [32] * 4)
    assert runs == [((2, 6), True), ((1, SOLO_TOKENS + 1), False), ((1, 1000), False)]
    runs.clear()
    engine.embed(texts_of([SOLO_TOKENS]), [32])
    assert runs == [((1, SOLO_TOKENS), True)]


def test_the_flag_reaches_the_graph(tiny_nomic: Tiny) -> None:
    """The engine finds apply_mask, which ORT counts as an overridable initializer."""
    _, engine = tiny_nomic
    ids = texts_of([12])[0][None]
    padded = np.ones_like(ids)
    padded[:, 6:] = 0
    engine._session.run(PaddedBatch(ids, padded), apply_mask=True)
    with pytest.raises(InferenceFailed, match="reshaped"):
        engine._session.run(PaddedBatch(ids, padded), apply_mask=False)


def test_no_padding_is_computed(tiny_nomic: Tiny) -> None:
    """Matrix products compute real tokens only, and `n_padding` is 0."""
    _, engine = tiny_nomic
    assert engine.embed(texts_of([3, 50, 9]), [32] * 3).n_padding == 0


def test_masked_and_unmasked_agree(tiny_nomic: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention with and without a mask gives the same vectors, except for the last bits."""
    _, engine = tiny_nomic
    (text,) = texts_of([300])
    (masked,) = engine.embed([text], [32]).embeddings
    monkeypatch.setattr(engine_module, "SOLO_TOKENS", 10)
    (unmasked,) = engine.embed([text], [32]).embeddings
    assert np.abs(masked - unmasked).max() < 1e-5


def test_dimensions_of_one_batch_may_differ(tiny_nomic: Tiny) -> None:
    """Each text has its own output size; k dimensions are the first k, normalised again."""
    _, engine = tiny_nomic
    texts = texts_of([6, 9, 7, 5])
    cut = engine.embed(texts, [32, 16, 5, 1]).embeddings
    whole = engine.embed(texts, [32] * 4).embeddings
    for size, vector, full in zip([32, 16, 5, 1], cut, whole, strict=True):
        expected = full[:size] / np.linalg.norm(full[:size])
        assert np.abs(vector - expected).max() < 1e-6


@pytest.mark.parametrize("text", ["", "\u200b", " \n"])
def test_a_text_of_nothing_is_a_unit_vector(tiny_bert: Tiny, text: str) -> None:
    """A text of special tokens alone has a finite vector."""
    _, engine = tiny_bert
    (vector,) = engine.embed([engine.tokenize([text])[0].ids], [32]).embeddings
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6


def test_values_that_are_not_finite_are_a_fault(
    tiny_bert: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector with NaN raises InferenceFailed; JSON would write NaN as null."""
    _, engine = tiny_bert

    def broken(batch: PaddedBatch, *, apply_mask: bool, interrupt: None) -> FloatArray:
        return np.full((*batch.input_ids.shape, 32), np.nan, np.float32)

    monkeypatch.setattr(engine._session, "run", broken)
    with pytest.raises(InferenceFailed, match="NaN or infinity"):
        engine.embed(texts_of([4]), [32])


def test_a_run_that_raises_is_typed(tiny_bert: Tiny) -> None:
    """An exception of ORT becomes InferenceFailed."""
    _, engine = tiny_bert
    with pytest.raises(InferenceFailed, match="a run of 1x1 tokens failed"):
        engine.embed([np.array([10_000_000])], [32])


def test_closing_interrupts(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Tiny) -> None:
    """After close, runs fail at once, so the process can end."""
    model, _ = tiny_bert
    engine = load_tiny(model, build_tiny(tmp_path_factory.mktemp("close"), model))
    engine.embed(texts_of([4]), [32])
    engine.close()
    with pytest.raises(InferenceFailed):
        engine.embed(texts_of([4]), [32])


class TestInterrupt:
    """A run can be ended early, and the engine goes on as before."""

    @pytest.mark.parametrize("lengths", [[4, 30], [700]], ids=["batch", "long"])
    def test_ends_the_run(self, tiny_bert: Tiny, lengths: list[int]) -> None:
        """A run whose interrupt is set gives nothing; the next run gives the same bits as ever."""
        _, engine = tiny_bert
        texts = texts_of(lengths)
        sizes = [32] * len(texts)
        expected = engine.embed(texts, sizes).embeddings
        interrupt = Interrupt()
        interrupt.set()
        with pytest.raises(Interrupted):
            engine.embed(texts, sizes, None, interrupt)
        assert all(map(np.array_equal, engine.embed(texts, sizes).embeddings, expected))
        later = engine.embed(texts, sizes, None, Interrupt()).embeddings
        assert all(map(np.array_equal, later, expected))

    def test_from_another_thread(self, tiny_bert: Tiny) -> None:
        """Runs that are interrupted at any moment give the right vectors, or `Interrupted`."""
        _, engine = tiny_bert
        texts = texts_of([60] * 40)
        expected = engine.embed(texts, [32] * 40).embeddings
        outcomes: set[str] = set()
        for number in range(400):
            interrupt = Interrupt()
            timer = threading.Timer(number * 1e-5, interrupt.set)
            timer.start()
            try:
                given = engine.embed(texts, [32] * 40, None, interrupt).embeddings
            except Interrupted:
                outcomes.add("interrupted")
            else:
                assert all(map(np.array_equal, given, expected))
                outcomes.add("done")
            timer.join()
            if len(outcomes) == 2:
                break
        assert outcomes == {"interrupted", "done"}

    def test_closing_ends_such_a_run_as_a_failure(
        self, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Tiny
    ) -> None:
        """A run that the engine's end stops was not interrupted: nobody may run it again."""
        model, _ = tiny_bert
        engine = load_tiny(model, build_tiny(tmp_path_factory.mktemp("close"), model))
        engine.close()
        with pytest.raises(InferenceFailed):
            engine.embed(texts_of([4]), [32], None, Interrupt())


def test_a_graph_that_is_none(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Tiny) -> None:
    """The error for a file that ORT cannot load names the file and the remedy."""
    path = tmp_path_factory.mktemp("bad") / "model.onnx"
    path.write_bytes(b"rubbish")
    with pytest.raises(ArtifactDamaged, match="ONNX Runtime cannot load"):
        SessionPool(path, plan_cores(1))


def test_with_and_without_the_last_step_in_one_batch(tiny_nomic: Tiny) -> None:
    """Texts of both kinds share a batch, and each has the bits that it has alone."""
    _, engine = tiny_nomic
    texts = texts_of([4, 9, 30, SOLO_TOKENS + 5])
    for normalize in ([True, False, True, False], [False, True, False, True]):
        together = engine.embed(texts, [32, 16, 8, 32], normalize).embeddings
        for text, size, unit, vector in zip(
            texts, [32, 16, 8, 32], normalize, together, strict=True
        ):
            (alone,) = engine.embed([text], [size], [unit]).embeddings
            assert alone.tobytes() == vector.tobytes()
            assert unit == (abs(float(np.linalg.norm(vector)) - 1) < 1e-5)
