"""Ready graphs of every interface: types, fixed sizes, positions, named outputs, and vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import BuildFailed, CheckpointMismatch, MatryoError
from matryo.core.progress import SILENT
from matryo.engine.onnx import OnnxEngine
from matryo.engine.onnx.prepacked import find_prepacked
from matryo.engine.packing import pack_model
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.checkpoints import HIDDEN, TinyModel, make_model, save_tensors, vocabulary
from tests.conftest import load_tiny

RNG = np.random.default_rng(0)
WORDS = RNG.standard_normal((len(vocabulary()), HIDDEN), dtype=np.float32)
PLACES = RNG.standard_normal((64, HIDDEN), dtype=np.float32)
TEXTS = [np.arange(4, 4 + n) for n in (3, 1, 9, 24)]


def export(
    path: Path,
    *,
    dtype: int = TensorProto.INT64,
    n_texts: int | None = None,
    n_tokens: int | None = None,
    positions: bool = False,
    hides_padding: bool = True,
    names: tuple[str, str] = ("token_embeddings", "sentence_embedding"),
    drop: str | None = None,
    more: tuple[str, ...] = (),
) -> Path:
    """A graph that mixes the tokens of a text, and pools the results with the mask.

    Args:
        path: of the new file.
        dtype: type of the inputs.
        n_texts: a fixed number of texts.
        n_tokens: a fixed number of tokens.
        positions: whether the graph takes `position_ids`.
        hides_padding: whether the sum over tokens obeys the mask.
        names: of the outputs: a state for each token, and one for each text.
        drop: an output that is left out.
        more: operators that are put into the graph, unconnected but for their input.
    """
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["x0"]),
        node("Cast", ["attention_mask"], ["m0"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["m0", "axis"], ["m1"]),
        node("Mul", ["m1", "one" if hides_padding else "nought"], ["m2"]),
        node("Add", ["m2", "nought" if hides_padding else "one"], ["m"]),
    ]
    if positions:
        nodes += [
            node("Gather", ["places", "position_ids"], ["p"]),
            node("Add", ["x0", "p"], ["x"]),
        ]
    else:
        nodes += [node("Identity", ["x0"], ["x"])]
    nodes += [
        node("Mul", ["x", "m"], ["masked"]),
        node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=1),
        node("ReduceSum", ["m", "tokens"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], ["mean"]),
        node("Add", ["x", "mean"], [names[0]]),
        node("Squeeze", ["mean", "tokens"], [names[1]]),
    ]
    nodes += [node(name, ["m0"], [f"{name}{i}" for i in range(3)]) for name in more]
    inputs = ["input_ids", "attention_mask", *(["position_ids"] if positions else [])]
    shape = (n_texts or "B", n_tokens or "T")
    values = [
        helper.make_tensor_value_info(names[0], TensorProto.FLOAT, (*shape, HIDDEN)),
        helper.make_tensor_value_info(names[1], TensorProto.FLOAT, (shape[0], HIDDEN)),
    ]
    constants = {
        "words": WORDS,
        "places": PLACES,
        "axis": np.array([2]),
        "tokens": np.array([1]),
        "one": np.ones(1, np.float32),
        "nought": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "export",
        [helper.make_tensor_value_info(name, dtype, shape) for name in inputs],
        [value for value in values if value.name != drop],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A model whose manifest and tokenizer are used, and whose weights are not."""
    return make_model(tmp_path, "bert", max_tokens=24)


def edit(model: TinyModel, old: str, new: str) -> None:
    """Replace a piece of the manifest."""
    path = model.models / model.id / "model.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def give_vectors(model: TinyModel, more: str = "") -> None:
    """Have the manifest say that the graph pools itself."""
    steps = json.dumps(["given", "truncate", "l2_normalize"])
    edit(model, 'steps = ["mean_pool", "truncate", "l2_normalize"]', f"steps = {steps}{more}")


def build(root: Path, model: TinyModel, graph: Path) -> OnnxEngine:
    """Build from a graph, and load what was built with prepacked weights."""
    target = graph.parent / "tokenizer.json"
    if not target.exists():
        shutil.copy(model.checkpoint / "tokenizer.json", target)
    store, manifest = Store(root / "home"), read_manifest(model.models / model.id)
    build_model(store, manifest, "fp32", graph, allow_unverified=True, reporter=SILENT)
    pack_model(store, manifest, "fp32", SILENT)
    artifact = find_artifact(store, manifest, "fp32")
    assert find_prepacked(artifact)
    return load_tiny(model, artifact)


def expected(ids: Any, *, positions: bool, given: bool = False) -> Any:
    """The vector of a text, in float64."""
    x = WORDS[ids].astype(np.float64)
    if positions:
        x = x + PLACES[: len(ids)]
    mean = x.mean(0)
    vector = mean if given else (x + mean).mean(0)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize(
    ("n_texts", "n_tokens", "n_padding"),
    [(None, None, (0, 0)), (1, None, (0, 0)), (None, 24, (59, 59)), (1, 24, (59, 59))],
)
def test_every_interface(
    tmp_path: Path,
    model: TinyModel,
    given: bool,
    positions: bool,
    dtype: int,
    n_texts: int | None,
    n_tokens: int | None,
    n_padding: tuple[int, int],
) -> None:
    """Types, fixed sizes, positions and vectors: each text has its vector, alone and in a batch."""
    if given:
        give_vectors(model)
    path = export(
        tmp_path / "m.onnx", dtype=dtype, n_texts=n_texts, n_tokens=n_tokens, positions=positions
    )
    engine = build(tmp_path, model, path)
    result = engine.embed(TEXTS, [HIDDEN, 16, 5, HIDDEN])
    for text, vector in zip(TEXTS, result.embeddings, strict=True):
        whole = expected(text, positions=positions, given=given)[: len(vector)]
        assert np.abs(vector - whole / np.linalg.norm(whole)).max() < 1e-6
        (alone,) = engine.embed([text], [len(vector)]).embeddings
        assert np.array_equal(alone, vector)
    assert result.n_padding == n_padding[given]
    assert engine.hidden_states(TEXTS[0]).shape == ((HIDDEN,) if given else (3, HIDDEN))


def test_outputs_that_the_manifest_names(tmp_path: Path, model: TinyModel) -> None:
    """An output of any name is read if the manifest names it; the others are ignored."""
    path = export(tmp_path / "m.onnx", names=("states", "embedding"))
    with pytest.raises(CheckpointMismatch, match=r"outputs .'states', 'embedding'.*graph_output"):
        build(tmp_path, model, path)
    edit(model, "steps =", 'graph_output = "states"\nsteps =')
    (vector,) = build(tmp_path, model, path).embed(TEXTS[:1], [HIDDEN]).embeddings
    assert np.abs(vector - expected(TEXTS[0], positions=False)).max() < 1e-6
    edit(model, 'graph_output = "states"\n', "")
    give_vectors(model, '\ngraph_output = "embedding"')
    (vector,) = build(tmp_path, model, path).embed(TEXTS[:1], [HIDDEN]).embeddings
    assert np.abs(vector - expected(TEXTS[0], positions=False, given=True)).max() < 1e-6


def test_dense_layers_after_a_graph_that_pools(tmp_path: Path, model: TinyModel) -> None:
    """A graph in `onnx/` that gives vectors finds its dense layer in the folder above."""
    weight = RNG.standard_normal((HIDDEN, HIDDEN), dtype=np.float32)
    for name in ("onnx", "2_Dense"):
        (tmp_path / "repo" / name).mkdir(parents=True)
    save_tensors({"linear.weight": weight}, tmp_path / "repo/2_Dense/model.safetensors")
    give_vectors(
        model,
        '\n[[output.dense]]\nfile = "2_Dense/model.safetensors"\nin_features = 32\n'
        'out_features = 32\nbias = false\nactivation = "tanh"',
    )
    edit(model, '["given", ', '["given", "dense", ')
    path = export(tmp_path / "repo/onnx/m.onnx")
    (vector,) = build(tmp_path, model, path).embed(TEXTS[:1], [HIDDEN]).embeddings
    mean = WORDS[TEXTS[0]].astype(np.float64).mean(0)
    wanted = np.tanh(weight @ mean)
    assert np.abs(vector - wanted / np.linalg.norm(wanted)).max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"dtype": TensorProto.FLOAT}, False, "'input_ids' is float; only int64 and int32"),
        ({"n_texts": 4}, False, "runs 4 texts at once and no other number"),
        ({"n_tokens": 1}, False, "texts of 1 token only"),
        ({"n_tokens": 16}, False, r"max_tokens = 24, but .* runs exactly 16 tokens\. Lower"),
        (
            {"names": ("t", "last_hidden_state")},
            False,
            r"'last_hidden_state' has 2 dimensions, but output\.steps .* for 3\. .* with given",
        ),
        (
            {"names": ("sentence_embedding", "v")},
            True,
            "'sentence_embedding' has 3 dimensions, but .* for 2. Begin output.steps with a pool",
        ),
        ({"drop": "sentence_embedding"}, True, "none of .'sentence_embedding'"),
        ({"drop": "token_embeddings"}, False, r"begin output\.steps with given"),
        ({"more": ("DynamicQuantizeLinear",)}, False, "dynamically quantised graph .it has Dynam"),
        ({"more": ("DynamicQuantizeMatMul",)}, True, "DynamicQuantizeMatMul.: a text's vector"),
    ],
)
def test_what_cannot_be_served(
    tmp_path: Path, model: TinyModel, changes: dict[str, Any], given: bool, message: str
) -> None:
    """A graph that cannot be fed or read, or whose vectors depend on a batch, is refused by name."""
    if given:
        give_vectors(model)
    path = export(tmp_path / "m.onnx", **changes)
    with pytest.raises(CheckpointMismatch, match=message):
        build(tmp_path, model, path)


@pytest.mark.parametrize("where", ["branch", "function"])
def test_dynamic_quantisation_anywhere(tmp_path: Path, model: TinyModel, where: str) -> None:
    """A dynamic operator is found in a branch of the graph and in a function of the file too."""
    path = export(tmp_path / "m.onnx")
    proto = cast("Any", onnx).load(str(path))
    node = helper.make_node("DynamicQuantizeLinear", ["m0"], ["q", "s", "z"])
    if where == "function":
        proto.functions.append(
            helper.make_function("f", "F", ["m0"], ["q"], [node], [helper.make_opsetid("", 17)])
        )
    else:
        out = helper.make_tensor_value_info("q", TensorProto.UINT8, None)
        body = helper.make_graph([node], "b", [], [out])
        proto.graph.node.append(
            helper.make_node("If", ["cond"], ["r"], then_branch=body, else_branch=body)
        )
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointMismatch, match="dynamically quantised graph"):
        build(tmp_path, model, path)


def test_positions_that_begin_elsewhere(tmp_path: Path, model: TinyModel) -> None:
    """Positions are fed from 0 on, so that a model of the RoBERTa kind must not ask for them."""
    from matryo.build.build import build as build_from

    path = export(tmp_path / "m.onnx", positions=True)
    shutil.copy(model.checkpoint / "tokenizer.json", tmp_path)
    manifest = read_manifest(model.models / model.id)
    changed = manifest.architecture.model_copy(update={"pad_token_id": 1})
    with pytest.raises(CheckpointMismatch, match="has the input position_ids, and positions of a"):
        build_from(
            Store(tmp_path / "home"),
            manifest.model_copy(update={"architecture": changed}),
            "fp32",
            path,
            allow_unverified=True,
            trust_manifest=False,
            reporter=SILENT,
        )


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("n_tokens", [None, 24])
def test_padding_that_shows(
    tmp_path: Path, model: TinyModel, given: bool, n_tokens: int | None
) -> None:
    """A graph that reads padding is refused, unless each of its texts runs without padding."""
    if given:
        give_vectors(model)
    path = export(tmp_path / "m.onnx", n_tokens=n_tokens, hides_padding=False)
    if n_tokens is None:
        engine = build(tmp_path, model, path)
        vectors = engine.embed(TEXTS, [HIDDEN] * 4).embeddings
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert np.abs(vector - expected(text, positions=False, given=given)).max() < 1e-6
        return
    with pytest.raises(BuildFailed, match="xport the graph again with an attention mask"):
        build(tmp_path, model, path)


def test_vectors_of_another_width(tmp_path: Path, model: TinyModel) -> None:
    """The width of a graph's vectors is held against the manifest."""
    give_vectors(model)
    edit(model, "native = 32\ntrained = [32, 16]", "native = 16\ntrained = [16]")
    with pytest.raises(MatryoError, match="the graph's vectors are float32 of the shape"):
        build(tmp_path, model, export(tmp_path / "m.onnx"))
