"""ONNX graphs of other tools are served unchanged, fed by name, and read no file elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from matryo.build.checkpoint.onnx import ReadyGraph, read_ready_graph
from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.choices import Precision
from matryo.core.errors import BuildFailed, CheckpointMismatch
from matryo.core.progress import SILENT
from matryo.engine.onnx import OnnxEngine
from matryo.engine.onnx.interface import Port, plan_graph
from matryo.store.layout import Store
from tests.checkpoints import HIDDEN, TinyModel, make_model, vocabulary
from tests.conftest import build_tiny, load_tiny

INPUTS = ("token_type_ids", "attention_mask", "input_ids")
WORDS = np.random.default_rng(0).standard_normal((len(vocabulary()), HIDDEN)).astype(np.float32)
TYPES = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)


def export(
    path: Path,
    inputs: tuple[str, ...] = INPUTS,
    outputs: tuple[str, ...] = ("sentence_embedding", "last_hidden_state"),
    location: str | None = None,
    length: int = WORDS.nbytes,
) -> Path:
    """A graph that adds a row for the id and a row for the token type, with its own input order."""
    words = numpy_helper.from_array(WORDS, "words")
    if location is not None:
        words = TensorProto(name="words", data_type=TensorProto.FLOAT, dims=WORDS.shape)
        words.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", str(length))):
            words.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["x"])]
    if "token_type_ids" in inputs:
        nodes += [
            helper.make_node("Gather", ["types", "token_type_ids"], ["t"]),
            helper.make_node("Add", ["x", "t"], ["y"]),
        ]
    last = nodes[-1].output[0]
    nodes += [helper.make_node("Identity", [last], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "export",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ("B", "T")) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("B", "T", HIDDEN)) for n in outputs],
        [words, numpy_helper.from_array(TYPES, "types")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A model whose manifest and tokenizer are used, and whose weights are not."""
    return make_model(tmp_path, "bert")


def build(
    root: Path, model: TinyModel, checkpoint: Path, precision: Precision = "fp32"
) -> OnnxEngine:
    """Build from a graph that no manifest pins."""
    for name in ("tokenizer.json",):
        target = checkpoint.parent / name
        target.write_bytes((model.checkpoint / name).read_bytes())
    artifact = build_model(
        Store(root / "home"),
        read_manifest(model.models / model.id),
        precision,
        checkpoint,
        allow_unverified=True,
        reporter=SILENT,
    )
    return load_tiny(model, artifact)


def expected(ids: list[int], token_type: int = 0) -> Any:
    """The vector of the one-layer graph."""
    mean = (WORDS[ids] + TYPES[token_type]).mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("location", [None, "weights.bin"])
def test_inputs_by_name(tmp_path: Path, model: TinyModel, location: str | None) -> None:
    """Inputs are fed by name, in any order; token types are 0."""
    folder = tmp_path / "ready"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(WORDS.tobytes())
    engine = build(tmp_path, model, export(folder / "model.onnx", location=location))
    short, long = np.array([4, 9, 5]), np.arange(4, 34)
    result = engine.embed([short, long], [HIDDEN] * 2)
    assert result.n_padding == 0  # each text runs alone
    one, other = result.embeddings
    assert np.abs(one - expected([4, 9, 5])).max() < 1e-6
    assert np.abs(other - expected(list(range(4, 34)))).max() < 1e-6
    assert np.abs(one - expected([4, 9, 5], token_type=1)).max() > 0.1


def test_without_token_types(tmp_path: Path, model: TinyModel) -> None:
    """Token types are not fed to a graph that does not declare them."""
    folder = tmp_path / "ready"
    folder.mkdir()
    engine = build(tmp_path, model, export(folder / "m.onnx", ("attention_mask", "input_ids")))
    (vector,) = engine.embed([np.array([4, 9, 5])], [HIDDEN]).embeddings
    mean = WORDS[[4, 9, 5]].mean(0)
    assert np.abs(vector - mean / np.linalg.norm(mean)).max() < 1e-6


def test_a_whole_encoder(tmp_path: Path, model: TinyModel) -> None:
    """A graph built by Matryo, with external data and apply_mask, gives the same vectors."""
    artifact = build_tiny(tmp_path, model)
    text = np.arange(4, 30)
    (before,) = load_tiny(model, artifact).embed([text], [HIDDEN]).embeddings
    (tmp_path / "copy").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "copy" / name).write_bytes((artifact.folder / name).read_bytes())
    (after,) = (
        build(tmp_path, model, tmp_path / "copy/model.onnx").embed([text], [HIDDEN]).embeddings
    )
    assert np.array_equal(before, after)


def test_hub_caches_link_their_files(tmp_path: Path) -> None:
    """A graph and its data may be links into a folder of blobs, as in the hub's cache."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/rev/onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    export(blobs / "aaa", location="model.onnx_data")
    (blobs / "bbb").write_bytes(WORDS.tobytes())
    (snapshot / "model.onnx").symlink_to(blobs / "aaa")
    (snapshot / "model.onnx_data").symlink_to(blobs / "bbb")
    assert read_ready_graph(snapshot / "model.onnx").data == (snapshot / "model.onnx_data",)


def test_other_precisions(tmp_path: Path, model: TinyModel) -> None:
    """A ready graph is served in its own precision only."""
    with pytest.raises(BuildFailed, match=r"q8 is made of a \.safetensors or \.gguf"):
        build(tmp_path, model, export(model.checkpoint / "m.onnx"), "q8")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (("input_ids",), ("last_hidden_state",), "no input .'attention_mask'"),
        ((*INPUTS, "pixels"), ("last_hidden_state",), "has the inputs .'pixels'"),
        (INPUTS, ("logits",), "has the outputs .'logits'"),
    ],
)
def test_not_a_text_encoder(
    tmp_path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], message: str
) -> None:
    """The error for a graph with unknown inputs or without hidden states names them."""
    with pytest.raises(CheckpointMismatch, match=message):
        read_ready_graph(export(tmp_path / "m.onnx", inputs, outputs))


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "sub/secret", "", ".", "link"])
def test_data_elsewhere(tmp_path: Path, location: str) -> None:
    """A data file outside the graph's own folder is never opened or copied."""
    folder = tmp_path / "ready"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "secret", folder / "sub/secret"):
        path.write_bytes(WORDS.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointMismatch, match="must lie beside"):
        read_ready_graph(export(folder / "m.onnx", location=location))


def test_data_that_is_gone_or_cut_off(tmp_path: Path) -> None:
    """A data file that is missing or truncated is refused and named."""
    path = export(tmp_path / "m.onnx", location="weights.bin")
    with pytest.raises(CheckpointMismatch, match=r"weights\.bin, which is not there"):
        read_ready_graph(path)
    (tmp_path / "weights.bin").write_bytes(WORDS.tobytes()[:-1])
    with pytest.raises(CheckpointMismatch, match="it is cut off"):
        read_ready_graph(path)
    export(path, location="weights.bin", length=-5)
    with pytest.raises(CheckpointMismatch, match="of -5 bytes"):
        read_ready_graph(path)


def test_cut_anywhere(tmp_path: Path) -> None:
    """A truncated file is refused and named, wherever it ends."""
    whole = export(tmp_path / "whole.onnx").read_bytes()
    graph = cast("Any", onnx).load_from_string(whole).graph.ByteSize()
    path = tmp_path / "cut.onnx"
    for n_bytes in range(0, graph, 97):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(CheckpointMismatch) as caught:
            read_ready_graph(path)
        assert str(path) in caught.value.message


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), new=st.binary(min_size=1, max_size=8))
def test_overwritten_anywhere(
    tmp_path_factory: pytest.TempPathFactory, at: float, new: bytes
) -> None:
    """A damaged file is refused and named, unless it still is a text encoder in one file."""
    path = export(tmp_path_factory.mktemp("damaged") / "m.onnx")
    content = bytearray(path.read_bytes())
    start = int(at * len(content))
    content[start : start + len(new)] = new[: len(content) - start]
    path.write_bytes(content)
    if is_text_encoder(bytes(content)):
        assert read_ready_graph(path) == ReadyGraph(path, ())
    else:
        with pytest.raises(CheckpointMismatch) as caught:
            read_ready_graph(path)
        assert str(path) in caught.value.message


def is_text_encoder(content: bytes) -> bool:
    """Whether a file is ONNX with usable inputs and outputs and no external data."""
    try:
        graph = cast("Any", onnx).load_from_string(content).graph
    except Exception:
        return False
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    if not all(isinstance(name, str) for name in (*inputs, *outputs)):  # not UTF-8
        return False
    if any("DynamicQuantize" in str(node.op_type) for node in graph.node):
        return False
    try:
        plan_graph(
            [port(value) for value in graph.input if value.name not in weights],
            [port(value) for value in graph.output],
        )
    except ValueError:
        return False
    return all(t.data_location != TensorProto.EXTERNAL for t in graph.initializer)


def port(value: Any) -> Port:
    """An input or an output; raises ValueError for a type that ONNX does not have."""
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return Port(value.name, dtype, tuple(dims) if tensor.HasField("shape") else None)


@pytest.mark.parametrize("old", [b"last_hidden_state", b"attention_mask", b"w.bin"])
def test_names_that_are_no_text(tmp_path: Path, old: bytes) -> None:
    """Names that are not UTF-8 are refused."""
    path = export(tmp_path / "m.onnx", location="w.bin")
    path.write_bytes(path.read_bytes().replace(old, b"\xff" * len(old)))
    with pytest.raises(CheckpointMismatch, match="not a whole ONNX file"):
        read_ready_graph(path)


def test_a_graph_that_mixes_texts(tmp_path: Path, model: TinyModel) -> None:
    """A graph that lets the texts of a batch change each other runs one text at a time."""
    path = export(model.checkpoint / "m.onnx", ("attention_mask", "input_ids"))
    proto = cast("Any", onnx).load(str(path))
    # The mean over the batch leaks into every text.
    proto.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Add", ["x", "m"], ["leaky"]),
        ]
    )
    nodes = {node.output[0]: node for node in proto.graph.node}
    nodes["last_hidden_state"].input[0] = "leaky"
    ordered = [nodes[n] for n in ("x", "m", "leaky", "sentence_embedding", "last_hidden_state")]
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    path.write_bytes(proto.SerializeToString())
    engine = build(tmp_path, model, path)
    texts = [np.array([4, 9, 5]), np.arange(4, 34)]
    vectors = engine.embed(texts, [HIDDEN] * 2).embeddings
    for text, vector in zip(texts, vectors, strict=True):
        mean = WORDS[text].mean(0)
        assert np.abs(vector - mean / np.linalg.norm(mean)).max() < 1e-6
