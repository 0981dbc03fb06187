"""Tiny seeded models: a manifest folder and a checkpoint of every architecture.

Weights are drawn wide enough that a wrong name, layout or activation moves the output.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from matryo.build import arch as build_arch
from matryo.store.files import sha256_file
from tests import arch

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
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *LETTERS, *pieces, "[MASK]"]


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


# nomic_bert as v2-moe has it: biases, plain GELU, and every second layer a mixture of experts.
EXPERTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "qkv_proj_bias": True,
    "mlp_bias": True,
    "type_vocab_size": 1,
    "rope_theta": 10000.0,
    "layer_norm_eps": 1e-5,
    "moe_every_n_layers": 2,
    "num_experts": 8,
    "moe_top_k": 2,
}


def architecture(model_type: str, **changes: object) -> dict[str, Any]:
    """The manifest's `[architecture]` of a tiny model."""
    if model_type in arch.MODEL_TYPES:
        return {"model_type": model_type, **arch.of(model_type).CONFIG, **changes}
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
    if (model_type := config["model_type"]) in arch.MODEL_TYPES:
        return arch.of(model_type).tensors(config, seed)
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
        made |= norm(at + "norm1") | norm(at + "norm2")
        every = config.get("moe_every_n_layers", 0)
        if every and i % every == 1:
            count = config["num_experts"]
            made[at + "mlp.router.layer.weight"] = draw(count, HIDDEN, std=0.5)
            made[at + "mlp.experts.mlp.w1"] = draw(count * INNER, HIDDEN)
            made[at + "mlp.experts.mlp.w2"] = draw(count * INNER, HIDDEN)
            made[at + "mlp.experts.bias"] = draw(HIDDEN)
            continue
        if config["hidden_act"] == "swiglu":
            made |= linear(at + "mlp.fc11", INNER, HIDDEN, bias=mlp)
            made |= linear(at + "mlp.fc12", INNER, HIDDEN, bias=mlp)
        else:
            made |= linear(at + "mlp.fc1", INNER, HIDDEN, bias=mlp)
        made |= linear(at + "mlp.fc2", HIDDEN, INNER, bias=mlp)
    return made


def save_gguf(
    model: TinyModel,
    path: Path,
    qtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    tokenizer: bool = True,
    unigram: bool | None = None,
    architecture: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """The checkpoint as llama.cpp's conversion writes it, matrices in `qtype` where they fit.

    Args:
        model: the model.
        path: of the new file.
        qtype: type of the matrices.
        tokenizer: write the vocabulary too.
        unigram: write it as that of XLM-R, with a score for each token; None for a model of that
            kind, which llama.cpp tells by its tokenizer.
        architecture: value of `general.architecture`; None for the model's own.
        metadata: values in place of the model's own, by key without the architecture.
    """
    if unigram is None:
        unigram = tokenizer and model.config["model_type"] == "xlm_roberta"
    values = gguf_metadata(model.config) | {"pooling_type": 1} | dict(metadata or {})
    own = _gguf_architecture(model.config)
    writer = gguf.GGUFWriter(path, architecture or own)
    for key, value in values.items():
        name = key if key.startswith("tokenizer.") else f"{architecture or own}.{key}"
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    for name, tensor in gguf_tensors(model.config, model.tensors).items():
        block, _ = gguf.GGML_QUANT_SIZES[qtype]
        fits = tensor.ndim > 1 and tensor.shape[-1] % block == 0 and "inp" not in name
        kind = qtype if fits else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(tensor), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    if unigram:
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in vocabulary()[4:])]
        writer.add_tokenizer_model("t5")
        writer.add_token_list(pieces)
        writer.add_token_scores([0.0] * 4 + [-1.0 - i / 8 for i in range(len(pieces) - 4)])
        writer.add_token_types([3, 3, 3, 2, *([1] * (len(pieces) - 4))])
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        writer.add_precompiled_charsmap(_charsmap())
    elif tokenizer:
        spelled = [_phantom(word) for word in vocabulary()]
        writer.add_tokenizer_model("bert")
        writer.add_token_list(spelled)
        special = gguf.TokenType.CONTROL
        kinds = [special if word.isupper() else gguf.TokenType.NORMAL for word in vocabulary()]
        writer.add_token_types(kinds)
        writer.add_unk_token_id(1)
        writer.add_sep_token_id(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_architecture(config: Mapping[str, Any]) -> str:
    """What llama.cpp calls the architecture."""
    if config["model_type"] == "nomic_bert":
        return "nomic-bert-moe" if config.get("moe_every_n_layers") else "nomic-bert"
    return build_arch.module(config["model_type"]).GGUF_ARCHITECTURES[0]


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that llama.cpp's conversion writes of a config, without the architecture."""
    keys = build_arch.module(config["model_type"]).GGUF_KEYS
    return {
        key.names[0].removeprefix("{arch}."): config[ours]
        for ours, key in keys.items()
        if key.names and config.get(ours) is not None
    }


def _charsmap() -> bytes:
    """A table of characters that replaces `~` by `a`, as sentencepiece writes it."""
    units = [0] * 256
    end = 200
    units[ord("~")] = (ord("~") ^ end) << 10 | 1 << 8 | ord("~")
    return struct.pack("<I256I", 1024, *units) + b"a\0"


def _phantom(word: str) -> str:
    """llama.cpp marks where a word begins, BERT where it goes on."""
    if word.isupper():
        return word
    return word[2:] if word.startswith("##") else f"\u2581{word}"


def gguf_tensors(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """Tensors under llama.cpp's names and in its layouts; `experts.bias` is dropped there."""
    if (model_type := config["model_type"]) in arch.MODEL_TYPES:
        return cast("Any", arch.of(model_type)).gguf_tensors(config, tensors)
    made: Tensors = {}
    words = {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.LayerNorm": "token_embd_norm",
        "emb_ln": "token_embd_norm",
        "encoder.layers.": "blk.",
        "encoder.layer.": "blk.",
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "norm1": "attn_output_norm",
        "norm2": "layer_output_norm",
        "mlp.fc11": "ffn_up",
        "mlp.fc12": "ffn_gate",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
        "mlp.router.layer": "ffn_gate_inp",
        "mlp.experts.mlp.w1": "ffn_up_exps.weight",
        "mlp.experts.mlp.w2": "ffn_down_exps.weight",
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    }
    for name, tensor in tensors.items():
        if name.startswith("pooler") or name.endswith(("position_ids", "experts.bias")):
            continue
        new = name
        for old, other in words.items():
            new = new.replace(old, other)
        if "_exps" in new:
            tensor = tensor.reshape(config["num_experts"], INNER, HIDDEN)  # noqa: PLW2901
            tensor = tensor.swapaxes(1, 2) if "down" in new else tensor  # noqa: PLW2901
        made[new] = tensor
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
    tokenizer: str = "",
    ballast_bytes: int = 0,
    **changes: object,
) -> TinyModel:
    """Write a tiny model below `root`; `ballast_bytes` are weights that no graph uses.

    `sources` and `tokenizer` are lines of the manifest: its sources, and more of `[tokenizer]`.
    """
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
        f"[tokenizer]\nmax_tokens = {max_tokens}\n{tokenizer}",
        "[prompts]",
        'query = "search_query: "\ndocument = "search_document: "' if prompts else "",
        f"[output]\nsteps = {json.dumps(steps)}",
        "layer_norm_eps = 1e-5" if layer_norm else "",
        f"[output.dimensions]\nnative = {HIDDEN}\ntrained = [{HIDDEN}, 16]",
        f"cut = {json.dumps(cut)}",
        "[precisions.fp32]\nmin_cosine = 0.99999",
        "[precisions.int8]\nmin_cosine = 0.98",
        "[precisions.q8]\nmin_cosine = 0.99",
        "[precisions.q4]\nmin_cosine = 0.5",
    ]
    (folder / "model.toml").write_text("\n".join(lines), encoding="utf-8")
    return TinyModel(model_id, root / "models", checkpoint, config, tensors)
