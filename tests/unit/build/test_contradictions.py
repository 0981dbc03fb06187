"""A manifest that the checkpoint's own files contradict is refused, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from matryo.build import arch
from matryo.build.provision import build_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ManifestInvalid
from matryo.core.progress import SILENT
from matryo.engine import CoreUse
from matryo.engine.onnx import OnnxEngine
from matryo.store.artifact import Artifact
from matryo.store.layout import Store
from tests import arch as tiny
from tests.checkpoints import EXPERTS, TinyModel, architecture, save_gguf
from tests.folders import change_json, make_folder, write_json
from tests.recorder import Recorder

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "nomic-v2-moe": ("nomic_bert", EXPERTS),
    **tiny.variants(),
}


def build(
    root: Path, model: TinyModel, checkpoint: Path, *, trust: bool = False, said: Any = SILENT
) -> Artifact:
    """Build the hand-written manifest from a folder with files of its own."""
    return build_model(
        Store(root / "home"),
        read_manifest(model.models / model.id),
        "fp32",
        checkpoint,
        allow_unverified=True,
        trust_manifest=trust,
        reporter=said,
    )


def other(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1024
        case float():
            return value * 10
        case str():
            return f"{value}_new"
        case list() | tuple():
            return ["full_attention"] * (len(value) or 4)
        case _:
            raise AssertionError(value)


def keys() -> Iterator[tuple[str, str]]:
    """Every key that a file may have for a variant, and that a manifest may not contradict."""
    for kind, (model_type, changes) in KINDS.items():
        stated = architecture(model_type, **changes)
        for ours, key in arch.module(model_type).HUB_KEYS.items():
            means = not key.only_if or stated.get(key.only_if)
            if ours == "global_attn_every_n_layers" and stated.get("layer_types"):
                means = False  # these say it already
            if not key.soft and means and (stated.get(ours) is not None or key.default is not None):
                yield kind, ours


@pytest.mark.parametrize(("kind", "ours"), list(keys()))
def test_config(tmp_path: Path, kind: str, ours: str) -> None:
    """Each value of `config.json` that the manifest has otherwise is named with both values."""
    model_type, changes = KINDS[kind]
    model, folder = make_folder(tmp_path, model_type, **changes)
    config = json.loads((folder / "config.json").read_text())
    key = arch.module(model_type).HUB_KEYS[ours]
    names = key.names
    *tables, name = names[0].split(".")
    inner = config
    for table in tables:
        inner = inner.setdefault(table, {})
    inner[name] = other(inner.get(name, key.default))
    write_json(folder / "config.json", config)
    with pytest.raises(ManifestInvalid) as caught:
        build(tmp_path, model, folder)
    message = caught.value.message
    assert "config.json: " in message
    assert names[0] in message or f"architecture.{ours}" in message
    assert "--trust-manifest" in message


def fixed() -> Iterator[tuple[str, str]]:
    """Every key of `config.json` that the graphs compute for some values only."""
    for kind, (model_type, _) in KINDS.items():
        for name in arch.module(model_type).HUB_FIXED:
            yield kind, name


@pytest.mark.parametrize(("kind", "name"), list(fixed()))
def test_fixed_values(tmp_path: Path, kind: str, name: str) -> None:
    """A value that no graph computes is a contradiction too."""
    model_type, changes = KINDS[kind]
    model, folder = make_folder(tmp_path, model_type, **changes)
    config = json.loads((folder / "config.json").read_text())
    inner = config
    *tables, last = name.split(".")
    for table in tables:
        inner = inner.setdefault(table, {})
    inner[last] = "something else"
    write_json(folder / "config.json", config)
    with pytest.raises(ManifestInvalid, match="something else"):
        build(tmp_path, model, folder)


def test_roberta_is_no_bert(tmp_path: Path) -> None:
    """All names of a RoBERTa fit a BERT, whose positions begin elsewhere: `model_type` tells."""
    model, folder = make_folder(tmp_path, "bert")
    change_json(folder / "config.json", model_type="roberta", type_vocab_size=2, pad_token_id=1)
    with pytest.raises(ManifestInvalid, match=r"config\.json: model_type"):
        build(tmp_path, model, folder)


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "pooling": (
        "1_Pooling/config.json",
        {"pooling_mode": "cls"},
        r"1_Pooling/config\.json: pooling_mode is cls_pool, but model\.toml says output\.steps",
    ),
    "prompts": (
        "config_sentence_transformers.json",
        {"prompts": {"query": "Q: "}},
        r"prompts\.query is 'Q: ', but model\.toml says prompts\.query = 'search_query: '",
    ),
    "lower case": (
        "tokenizer_config.json",
        {"do_lower_case": False},
        r"do_lower_case false, but .*tokenizer\.json has normalizer\.lowercase true",
    ),
    "accents": (
        "tokenizer_config.json",
        {"strip_accents": False},
        r"strip_accents false, but .*normalizer\.strip_accents null",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_beside_the_weights(tmp_path: Path, case: str) -> None:
    """Pooling, prompts and the tokenizer's settings are held against the manifest."""
    name, values, message = CASES[case]
    model, folder = make_folder(tmp_path, "bert")
    toml = model.models / model.id / "model.toml"
    toml.write_text(toml.read_text().replace("[prompts]", '[prompts]\nquery = "search_query: "'))
    build(tmp_path, model, folder)
    change_json(folder / name, **values)
    with pytest.raises(ManifestInvalid, match=message):
        build(tmp_path, model, folder)


def test_dense_modules(tmp_path: Path) -> None:
    """A Dense module that the manifest does not have is named."""
    model, folder = make_folder(tmp_path, "bert", dense=[(32, 32, "Tanh")])
    with pytest.raises(ManifestInvalid, match="has 1 Dense modules, but"):
        build(tmp_path, model, folder)


def test_trusted(tmp_path: Path) -> None:
    """`--trust-manifest` builds all the same; record and fingerprint say so."""
    model, folder = make_folder(tmp_path, "bert")
    agreeing = build(tmp_path, model, folder)
    change_json(folder / "config.json", layer_norm_eps=1e-5)
    recorder = Recorder()
    artifact = build(tmp_path, model, folder, trust=True, said=recorder)
    assert any(line.startswith("warning: config.json: layer_norm_eps") for line in recorder.said)
    assert artifact.record.against
    assert artifact.record.key != agreeing.record.key
    use = CoreUse(workers=1, threads=1, lone_threads=1)
    manifest = read_manifest(model.models / model.id)
    assert OnnxEngine(manifest, artifact, use).fingerprint.endswith("+trusted")


def test_nothing_beside_the_weights(tmp_path: Path) -> None:
    """A folder with weights and tokenizer alone contradicts nothing."""
    model, _ = make_folder(tmp_path, "bert")
    assert build(tmp_path, model, model.checkpoint).record.against == ()


GGUF_CASES: dict[str, tuple[str, Any, str]] = {
    "heads": ("attention.head_count", 8, "num_attention_heads = 4"),
    "eps": ("attention.layer_norm_epsilon", 1e-3, "layer_norm_eps = 1e-12"),
    "layers": ("block_count", 3, "num_hidden_layers = 2"),
    "pooling": ("pooling_type", 2, r"pooling_type is 2 \(cls_pool\)"),
    "positions": ("context_length", 512, "max_position_embeddings = 1200"),
}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_gguf(tmp_path: Path, case: str) -> None:
    """The metadata of a GGUF file are held against the manifest."""
    key, value, message = GGUF_CASES[case]
    model, _ = make_folder(tmp_path, "bert")
    path = save_gguf(model, tmp_path / "right.gguf")
    build(tmp_path, model, path)
    path = save_gguf(model, tmp_path / "wrong.gguf", metadata={key: value})
    with pytest.raises(ManifestInvalid, match=message):
        build(tmp_path, model, path)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    """A GGUF file of another architecture is refused by that name."""
    model, _ = make_folder(tmp_path, "bert")
    path = save_gguf(model, tmp_path / "other.gguf", architecture="nomic-bert")
    with pytest.raises(ManifestInvalid, match=r"general\.architecture is 'nomic_bert'"):
        build(tmp_path, model, path)
    assert gguf.GGUFReader(path).get_field("general.architecture")
