"""Graphs compute the papers' formulas: each architecture agrees with a float64 forward."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from matryo.build import arch
from matryo.build.arch import _layers as layers
from matryo.catalog.reading import read_manifest
from matryo.core.choices import PRECISIONS
from matryo.core.errors import BuildFailed, CheckpointMismatch, UnsupportedArchitecture
from matryo.engine.onnx import OnnxEngine
from matryo.store.artifact import BUILDER_VERSION
from matryo.store.files import sha256_file
from tests import arch as tiny
from tests.checkpoints import (
    EXPERTS,
    Tensors,
    TinyModel,
    make_model,
    random_tensors,
    save_tensors,
    vocabulary,
)
from tests.conftest import build_tiny, load_tiny
from tests.reference import hidden_states, pooled

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert-eps": ("bert", {"layer_norm_eps": 1e-5}),
    "nomic-v1.5": ("nomic_bert", {}),
    "nomic-biases-gelu": (
        "nomic_bert",
        {
            "hidden_act": "gelu",
            "qkv_proj_bias": True,
            "mlp_bias": True,
            "type_vocab_size": 1,
            "rope_theta": 10000.0,
            "layer_norm_eps": 1e-5,
        },
    ),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
    "nomic-one-expert": ("nomic_bert", EXPERTS | {"num_experts": 1, "moe_top_k": 1}),
    "nomic-all-experts": ("nomic_bert", EXPERTS | {"num_experts": 3, "moe_top_k": 3}),
}
DIGESTS = {"bert": "94a15c5ef313", "nomic_bert": "fdbe638559be"} | {
    model_type: tiny.of(model_type).DIGEST for model_type in tiny.MODEL_TYPES
}


@pytest.fixture(scope="module", params=VARIANTS | tiny.variants())
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TinyModel, OnnxEngine]:
    """Each variant, built and loaded."""
    model_type, changes = (VARIANTS | tiny.variants())[request.param]
    root = tmp_path_factory.mktemp(request.param)
    model = make_model(root, model_type, layer_norm=model_type == "nomic_bert", **changes)
    return model, load_tiny(model, build_tiny(root, model))


@pytest.mark.parametrize("n_tokens", [2, 3, 17, 40])
def test_vectors_match_the_reference(built: tuple[TinyModel, OnnxEngine], n_tokens: int) -> None:
    """The vectors of float32 on ORT agree with those of float64 loops."""
    model, engine = built
    ids = np.random.default_rng(n_tokens).integers(4, model.config["vocab_size"], n_tokens)
    hidden = hidden_states(model.config, model.tensors, ids.tolist())
    eps = engine.manifest.output.layer_norm_eps
    for size in (32, 16, 5):
        (vector,) = engine.embed([ids], [size]).embeddings
        expected = pooled(hidden, layer_norm_eps=eps, dimensions=size)
        assert np.abs(vector - expected).max() < 1e-5


@pytest.mark.parametrize(
    "function",
    ["np_gelu", "np_silu", "np_layer_norm", "np_attention"],
)
def test_the_build_check_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """A graph that differs from the forward stops the build, which leaves no artefact."""
    model_type = "bert" if function == "np_gelu" else "nomic_bert"
    model = make_model(tmp_path, model_type)
    right = getattr(layers, function)
    monkeypatch.setattr(layers, function, lambda *args: right(*args) * np.float32(1.001))
    with pytest.raises(BuildFailed, match="differ from the numpy forward"):
        build_tiny(tmp_path, model)
    assert not list((tmp_path / "home/artifacts").rglob("artifact.json"))


def rewritten(tmp_path: Path, model: TinyModel, tensors: Tensors) -> None:
    """Replace the tensors of a model's checkpoint, and the hash in its manifest."""
    path = model.checkpoint / "model.safetensors"
    before = sha256_file(path)
    save_tensors(tensors, path)
    manifest = model.models / model.id / "model.toml"
    manifest.write_text(manifest.read_text().replace(before, sha256_file(path)))


class TestTensorNames:
    """A checkpoint is read under any of its known names, or refused."""

    def test_transformers_names(self, tmp_path: Path) -> None:
        """A nomic_bert with transformers' names gives the same vectors as with the hub's."""
        model = make_model(tmp_path, "nomic_bert")
        expected = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        renamed: Tensors = {}
        for name, tensor in model.tensors.items():
            new = name.replace("encoder.layers", "layers").replace("emb_ln", "embeddings.LayerNorm")
            for old, other in (
                ("attn.out_proj", "self_attn.o_proj"),
                ("fc11", "up_proj"),
                ("fc12", "gate_proj"),
                ("fc2", "down_proj"),
                ("norm1", "post_attention_layernorm"),
                ("norm2", "post_mlp_layernorm"),
            ):
                new = new.replace(old, other)
            if "attn.Wqkv" in new:
                for letter, part in zip("qkv", np.split(tensor, 3), strict=True):
                    renamed[new.replace("attn.Wqkv", f"self_attn.{letter}_proj")] = part
            else:
                renamed[new] = tensor
        rewritten(tmp_path, model, renamed)
        found = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        assert np.array_equal(found.embeddings[0], expected.embeddings[0])

    def test_bert_with_a_head(self, tmp_path: Path) -> None:
        """A BERT whose names all begin with `bert.` is read."""
        model = make_model(tmp_path, "bert")
        expected = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        rewritten(tmp_path, model, {f"bert.{n}": t for n, t in model.tensors.items()})
        found = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        assert np.array_equal(found.embeddings[0], expected.embeddings[0])

    def test_half_precision_weights(self, tmp_path: Path) -> None:
        """Weights in F16 give nearly the vectors of their F32 originals."""
        model = make_model(tmp_path, "bert")
        expected = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        halves: Any = {n: t.astype(np.float16) for n, t in model.tensors.items()}
        rewritten(tmp_path, model, halves)
        found = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        assert found.embeddings[0] @ expected.embeddings[0] > 0.9999

    def test_missing_tensor(self, tmp_path: Path) -> None:
        """The error for a missing tensor names it."""
        model = make_model(tmp_path, "bert")
        tensors = dict(model.tensors)
        del tensors["encoder.layer.1.output.dense.weight"]
        rewritten(tmp_path, model, tensors)
        with pytest.raises(CheckpointMismatch, match=r"lacks 'encoder\.layer\.1\.output\.dense"):
            build_tiny(tmp_path, model)

    def test_tensor_without_a_place(self, tmp_path: Path) -> None:
        """A bias that the config does not have is refused."""
        model = make_model(tmp_path, "nomic_bert")
        config = model.config | {"qkv_proj_bias": True}
        rewritten(tmp_path, model, random_tensors(config))
        with pytest.raises(CheckpointMismatch, match=r"Wqkv\.bias.*no place"):
            build_tiny(tmp_path, model)

    def test_wrong_shape(self, tmp_path: Path) -> None:
        """The error for a wrong shape has the file's shape and the config's."""
        model = make_model(tmp_path, "bert")
        name = "embeddings.position_embeddings.weight"
        rewritten(tmp_path, model, model.tensors | {name: model.tensors[name][:-1]})
        with pytest.raises(CheckpointMismatch, match=r"shape \(1199, 32\).*says \(1200, 32\)"):
            build_tiny(tmp_path, model)

    def test_fewer_words_than_the_tokenizer(self, tmp_path: Path) -> None:
        """A word table with fewer rows than the tokenizer has ids is refused."""
        model = make_model(tmp_path, "bert")
        name = "embeddings.word_embeddings.weight"
        rewritten(tmp_path, model, model.tensors | {name: model.tensors[name][:-1]})
        with pytest.raises(CheckpointMismatch, match=r"ids up to 67.* has 67 rows"):
            build_tiny(tmp_path, model)

    def test_word_table_without_its_padding(self, tmp_path: Path) -> None:
        """Padding rows at the end of the word table may be missing, as in GGUF files."""
        words = len(vocabulary())
        model = make_model(tmp_path, "nomic_bert", vocab_size=words + 20)
        expected = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        name = "embeddings.word_embeddings.weight"
        rewritten(tmp_path, model, model.tensors | {name: model.tensors[name][:words]})
        found = load_tiny(model, build_tiny(tmp_path, model)).embed([np.arange(4, 20)], [32])
        assert np.array_equal(found.embeddings[0], expected.embeddings[0])

    def test_other_architecture(self, tmp_path: Path) -> None:
        """A checkpoint with the names of another architecture is refused."""
        model = make_model(tmp_path, "bert")
        rewritten(tmp_path, model, {"decoder.weight": np.zeros((2, 2), np.float32)})
        with pytest.raises(CheckpointMismatch, match="none of the tensors"):
            build_tiny(tmp_path, model)

    def test_integers_are_no_weights(self, tmp_path: Path) -> None:
        """A tensor of integers in place of weights is refused."""
        model = make_model(tmp_path, "bert")
        name = "embeddings.word_embeddings.weight"
        odd: Any = dict(model.tensors) | {name: model.tensors[name].astype(np.int64)}
        rewritten(tmp_path, model, odd)
        with pytest.raises(CheckpointMismatch, match="is I64"):
            build_tiny(tmp_path, model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model_type = "bert"', 'model_type = "gpt2"', "no graph for model_type 'gpt2'"),
        ('hidden_act = "gelu"', 'hidden_act = "relu"', "architecture.hidden_act"),
        ("type_vocab_size = 2", "type_vocab_sise = 2", "architecture.type_vocab_sise"),
    ],
)
def test_unknown_architectures(tmp_path: Path, old: str, new: str, message: str) -> None:
    """An architecture without a graph is refused by name before the build begins."""
    model = make_model(tmp_path, "bert")
    path = model.models / model.id / "model.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UnsupportedArchitecture) as caught:
        arch.load(read_manifest(path.parent))
    assert message in caught.value.message


def describe(node: onnx.NodeProto) -> str:
    """A node's operator, inputs, outputs and numbers as text."""
    inner = [describe(n) for attribute in node.attribute for n in attribute.g.node]
    numbers = sorted((a.name, a.i, list(a.ints), round(a.f, 12)) for a in node.attribute)
    return f"{node.domain}.{node.op_type} {node.input} -> {node.output} {numbers} {inner}"


@pytest.mark.parametrize("model_type", DIGESTS)
def test_builder_version_is_pinned(tmp_path: Path, model_type: str) -> None:
    """A changed graph needs a new BUILDER_VERSION; without one, old artefacts would be kept.

    When this fails for an architecture that was there before, raise BUILDER_VERSION and write the
    new digest down.
    """
    lines: list[str] = []
    for name, (kind, changes) in (VARIANTS | tiny.variants()).items():
        if kind != model_type:
            continue
        model = make_model(tmp_path / name, model_type, **changes)
        for precision in PRECISIONS:
            path = build_tiny(tmp_path / name, model, precision).graph
            graph = onnx.load(path, load_external_data=False).graph
            lines += [describe(node) for node in graph.node]
            lines += [f"{tensor.name} {list(tensor.dims)}" for tensor in graph.initializer]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    assert (BUILDER_VERSION, digest) == (6, DIGESTS[model_type])
