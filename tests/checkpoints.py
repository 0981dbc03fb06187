"""Tiny seeded models: a manifest folder and a checkpoint of every architecture.

Weights are drawn wide enough that a wrong name, layout or activation moves the output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from app.graph.store import sha256_file

Tensors = dict[str, NDArray[np.float32]]

WORDS = ("the", "sky", "is", "blue", "grass", "green", "search", "_", "query", "document", ":")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 32, 4, 2, 48, 1200


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write a safetensors file."""
    cast("Any", safetensors.numpy).save_file(tensors, path)


def vocabulary() -> list[str]:
    """Special tokens, a few words, and letters enough to spell any other."""
    pieces = [f"##{letter}" for letter in LETTERS]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *LETTERS, *pieces]


def make_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer like BERT's, truncation and padding switched on as in MiniLM's."""
    vocab = {piece: i for i, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def architecture(model_type: str, **changes: object) -> dict[str, Any]:
    """The manifest's `[architecture]` of a tiny model."""
    shared: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "vocab_size": len(vocabulary()),
        "layer_norm_eps": 1e-12,
    }
    own: dict[str, dict[str, Any]] = {
        "bert": {"hidden_act": "gelu"},
        "nomic_bert": {
            "hidden_act": "swiglu",
            "qkv_proj_bias": False,
            "mlp_bias": False,
            "rope_theta": 1000.0,
        },
    }
    return shared | own[model_type] | changes


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """A checkpoint under the names of its files on the hub."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, std: float = 0.3) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(std)

    def linear(name: str, out: int, into: int, *, bias: bool) -> Tensors:
        made = {f"{name}.weight": draw(out, into)}
        return made | ({f"{name}.bias": draw(out)} if bias else {})

    def norm(name: str) -> Tensors:
        return {f"{name}.weight": 1 + draw(HIDDEN, std=0.2), f"{name}.bias": draw(HIDDEN)}

    table = {
        "embeddings.word_embeddings.weight": draw(config["vocab_size"], HIDDEN, std=1.0),
        "embeddings.token_type_embeddings.weight": draw(config["type_vocab_size"], HIDDEN),
    }
    if config["model_type"] == "bert":
        made = table | norm("embeddings.LayerNorm")
        made["embeddings.position_embeddings.weight"] = draw(POSITIONS, HIDDEN, std=1.0)
        made["embeddings.position_ids"] = np.zeros((1, POSITIONS), np.float32)
        made |= linear("pooler.dense", HIDDEN, HIDDEN, bias=True)
        for i in range(LAYERS):
            at = f"encoder.layer.{i}."
            for name in ("query", "key", "value"):
                made |= linear(f"{at}attention.self.{name}", HIDDEN, HIDDEN, bias=True)
            made |= linear(at + "attention.output.dense", HIDDEN, HIDDEN, bias=True)
            made |= norm(at + "attention.output.LayerNorm")
            made |= linear(at + "intermediate.dense", INNER, HIDDEN, bias=True)
            made |= linear(at + "output.dense", HIDDEN, INNER, bias=True)
            made |= norm(at + "output.LayerNorm")
        return made
    made = table | norm("emb_ln")
    for i in range(LAYERS):
        at = f"encoder.layers.{i}."
        qkv, mlp = config["qkv_proj_bias"], config["mlp_bias"]
        made |= linear(at + "attn.Wqkv", 3 * HIDDEN, HIDDEN, bias=qkv)
        made |= linear(at + "attn.out_proj", HIDDEN, HIDDEN, bias=qkv)
        if config["hidden_act"] == "swiglu":
            made |= linear(at + "mlp.fc11", INNER, HIDDEN, bias=mlp)
            made |= linear(at + "mlp.fc12", INNER, HIDDEN, bias=mlp)
        else:
            made |= linear(at + "mlp.fc1", INNER, HIDDEN, bias=mlp)
        made |= linear(at + "mlp.fc2", HIDDEN, INNER, bias=mlp)
        made |= norm(at + "norm1") | norm(at + "norm2")
    return made


@dataclass(frozen=True)
class TinyModel:
    """A model on disk.

    Attributes:
        id: of the manifest, and name of its folder.
        models: folder to name in MATRYO_MODELS.
        checkpoint: folder of `model.safetensors` and `tokenizer.json`.
        config: the manifest's `[architecture]`.
        tensors: what `model.safetensors` holds.
    """

    id: str
    models: Path
    checkpoint: Path
    config: dict[str, Any]
    tensors: Tensors


def make_model(
    root: Path,
    model_type: str,
    *,
    model_id: str = "tiny",
    max_tokens: int = 64,
    layer_norm: bool = False,
    prompts: bool = False,
    cut: bool = True,
    sources: str = "",
    ballast_bytes: int = 0,
    **changes: object,
) -> TinyModel:
    """Write a tiny model below `root`; `ballast_bytes` are weights that no graph uses."""
    config = architecture(model_type, **changes)
    tensors = random_tensors(config)
    if ballast_bytes:
        tensors["pooler.ballast"] = np.zeros(ballast_bytes // 4, np.float32)
    checkpoint = root / f"{model_id}-checkpoint"
    checkpoint.mkdir(parents=True)
    save_tensors(tensors, checkpoint / "model.safetensors")
    make_tokenizer().save(str(checkpoint / "tokenizer.json"))
    folder = root / "models" / model_id
    folder.mkdir(parents=True)
    steps = ["mean_pool", *(["layer_norm"] if layer_norm else []), "truncate", "l2_normalize"]
    files = {
        name: sha256_file(checkpoint / name) for name in ("model.safetensors", "tokenizer.json")
    }
    lines = [
        f'id = "{model_id}"',
        f'aliases = ["acme/{model_id}"]',
        'owned_by = "tests"',
        "created = 2024-01-01",
        'license = "Apache-2.0"',
        "[files]",
        *(f'"{name}" = {{ sha256 = "{sha256}" }}' for name, sha256 in files.items()),
        sources,
        "[architecture]",
        *(f"{key} = {json.dumps(value)}" for key, value in config.items()),
        f"[tokenizer]\nmax_tokens = {max_tokens}",
        "[prompts]",
        'query = "search_query: "\ndocument = "search_document: "' if prompts else "",
        f"[output]\nsteps = {json.dumps(steps)}",
        "layer_norm_eps = 1e-5" if layer_norm else "",
        f"[output.dimensions]\nnative = {HIDDEN}\ntrained = [{HIDDEN}, 16]",
        f"cut = {json.dumps(cut)}",
        "[precisions.fp32]\nmin_cosine = 0.99999",
    ]
    (folder / "model.toml").write_text("\n".join(lines), encoding="utf-8")
    return TinyModel(model_id, root / "models", checkpoint, config, tensors)
