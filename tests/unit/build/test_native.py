"""Graphs of matryo-native's operators: as accurate as the others, and the same bits in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from matryo.build.emit import NATIVE
from matryo.build.precision import quantize_rows
from matryo.catalog.reading import read_manifest
from matryo.core.choices import Precision
from matryo.core.environment import load_settings
from matryo.core.errors import ArtifactMissing, SettingsInvalid
from matryo.core.native import INTERFACE, native_library, native_watcher, uses_native
from matryo.engine import Interrupt, Interrupted
from matryo.engine.onnx.prepacked import find_prepacked, is_settled
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store, open_store
from tests import arch as tiny
from tests.checkpoints import EXPERTS, make_model
from tests.conftest import build_tiny, load_tiny

ONE_HEAD: dict[str, Any] = {
    "num_attention_heads": 1
}  # 32 entries wide, which the native attention takes
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert-one-head": ("bert", ONE_HEAD),
    "nomic-v1.5": ("nomic_bert", {}),
    "nomic-v1.5-one-head": ("nomic_bert", ONE_HEAD),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
    "nomic-v2-moe-one-head": ("nomic_bert", EXPERTS | ONE_HEAD),
    "new-one-head": ("new", ONE_HEAD),
    "modernbert-one-head": ("modernbert", ONE_HEAD),
} | tiny.variants()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_alone_as_in_any_batch(tmp_path: Path, kind: str, precision: Precision) -> None:
    """Every architecture builds within its bounds, and a text has the same bits in any batch."""
    model_type, changes = KINDS[kind]
    model = make_model(tmp_path, model_type, max_tokens=1200, **changes)
    artifact = build_tiny(tmp_path, model, precision, native=True)
    one, several = (load_tiny(model, artifact, threads) for threads in (1, 3))
    lengths = (*range(1, 24), 100, 129, 512, 600)
    texts = [np.random.default_rng(n).integers(4, 60, n) for n in lengths]
    alone = [one.embed([text], [32]).embeddings[0] for text in texts]
    rng = np.random.default_rng(0)
    for engine in (one, several, one, several):
        order = rng.permutation(len(texts))[: rng.integers(2, 17)]
        together = engine.embed([texts[i] for i in order], [32] * len(order)).embeddings
        for vector, i in zip(together, order, strict=True):
            assert np.array_equal(vector, alone[i]), len(texts[i])


def test_an_interrupt_reaches_the_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends by the flag alone, without ONNX Runtime's help; later runs have the same bits."""
    model = make_model(tmp_path, "bert", **ONE_HEAD)
    engine = load_tiny(model, build_tiny(tmp_path, model, native=True))
    text = np.arange(4, 24)
    expected = engine.embed([text], [32]).embeddings[0]
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "watch", lambda *_: None)
        interrupt = Interrupt()
        interrupt.set()
        with pytest.raises(Interrupted):
            engine.embed([text], [32], None, interrupt)
    assert np.array_equal(engine.embed([text], [32]).embeddings[0], expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_artefact_of_its_own(tmp_path: Path, precision: Precision) -> None:
    """Native and other artefacts exist side by side, and the fingerprint tells them apart."""
    model = make_model(tmp_path, "bert", **ONE_HEAD)
    manifest = read_manifest(model.models / model.id)
    native = build_tiny(tmp_path, model, precision, native=True)
    with pytest.raises(ArtifactMissing):
        find_artifact(Store(tmp_path / "home"), manifest, precision)
    plain = build_tiny(tmp_path, model, precision)
    assert find_artifact(Store(tmp_path / "home"), manifest, precision) == plain
    assert find_artifact(Store(tmp_path / "home", native=True), manifest, precision) == native
    assert native.record.fingerprint == f"tiny/{precision}/{native.record.key}+native"
    assert plain.record.key != native.record.key
    domains = {node.domain for node in onnx.load(native.graph).graph.node}
    assert NATIVE in domains
    assert NATIVE not in {node.domain for node in onnx.load(plain.graph).graph.node}
    assert is_settled(native), "packed weights need no second copy"
    assert find_prepacked(native) is None


def test_other_precisions_stay(tmp_path: Path) -> None:
    """q8 and q4 have no native operators, and use the same artefact with and without them."""
    model = make_model(tmp_path, "bert")
    artifact = build_tiny(tmp_path, model, "q8", native=True)
    assert artifact.record.native == 0
    manifest = read_manifest(model.models / model.id)
    assert find_artifact(Store(tmp_path / "home"), manifest, "q8") == artifact


def test_other_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artefact for other operators than the installed ones is built anew, and not loaded."""
    model = make_model(tmp_path, "bert")
    build_tiny(tmp_path, model, native=True)
    monkeypatch.setattr("matryo.store.artifact.INTERFACE", INTERFACE + 1)
    manifest = read_manifest(model.models / model.id)
    with pytest.raises(ArtifactMissing, match="another version"):
        find_artifact(Store(tmp_path / "home", native=True), manifest, "fp32")


def test_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the package if it is there and fast; `native` without it is refused."""
    assert uses_native("auto")
    assert uses_native("native")
    assert not uses_native("onnxruntime")
    assert native_library().is_file()
    settings = load_settings(None, home=tmp_path, kernels="auto")
    assert open_store(settings).native("int8")
    assert not open_store(settings).native("q4")
    assert not open_store(settings.model_copy(update={"kernels": "onnxruntime"})).native("int8")
    with monkeypatch.context() as patch:
        patch.setattr("matryo_native.isa", lambda: "portable")
        assert not uses_native("auto")
        assert uses_native("native")
    with monkeypatch.context() as patch:
        patch.delattr("matryo_native.watcher")
        with pytest.raises(SettingsInvalid, match="older than this Matryo"):
            native_watcher()
    monkeypatch.setattr("matryo.core.native.INTERFACE", INTERFACE + 1)
    assert not uses_native("auto")
    with pytest.raises(SettingsInvalid, match=f"interface {INTERFACE}, .* needs {INTERFACE + 1}"):
        uses_native("native")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert not uses_native("auto")
    with pytest.raises(SettingsInvalid, match=r"is not installed.*pip install"):
        uses_native("native")


@pytest.mark.parametrize("width", [1, 7, 8, 64, 771])
@pytest.mark.parametrize("tail", [0.1, 1.0, 4.0])
def test_room_for_four(width: int, tail: float) -> None:
    """The products of four neighbours with bytes of up to 255 fit in 16 bits."""
    normal = np.random.default_rng(width).standard_normal((20, width))
    weight = (np.sign(normal) * np.abs(normal) ** tail).astype(np.float32)
    levels, scales = quantize_rows(weight, "four")
    assert (np.abs(levels * scales[:, None] - weight) <= 0.501 * scales[:, None]).all()
    steps = np.pad(levels.astype(int), ((0, 0), (0, -width % 8))).reshape(20, -1, 2, 2, 2)
    assert np.maximum(steps, 0).sum((2, 4)).max() * 255 < 1 << 15
    assert np.maximum(-steps, 0).sum((2, 4)).max() * 255 <= 1 << 15
    exact, fine = quantize_rows(weight, "one")
    assert (fine <= scales * 1.0001).all()
    assert (np.abs(exact * fine[:, None] - weight) <= 0.501 * fine[:, None]).all()
