"""The tensor names of `new` in checkpoints: those of Alibaba's code and of transformers."""

from __future__ import annotations

from matryo.build.arch.new.config import Config
from matryo.build.checkpoint import Checkpoint, Part, Spelling, Weights

_QKV = ("query", "key", "value")


def _both(ours: str, theirs: str, index: int = 0, of: int = 1) -> Spelling:
    """A module's weight and bias, as equal part number `index` of `of` of the file's."""
    return {
        f"{ours}.{suffix}": Part(f"{theirs}.{suffix}", index, of) for suffix in ("weight", "bias")
    }


def _embeddings(config: Config, prefix: str) -> dict[str, str | Part]:
    table: dict[str, str | Part] = {
        "word_embeddings": f"{prefix}embeddings.word_embeddings.weight",
        **_both("embedding_norm", f"{prefix}embeddings.LayerNorm"),
    }
    if config.type_vocab_size:
        table["token_type_embeddings"] = f"{prefix}embeddings.token_type_embeddings.weight"
    return table


def _hub_names(config: Config, prefix: str, *, packed: bool) -> Spelling:
    """The names of Alibaba's code.

    Args:
        config: the model's config.
        prefix: text before every name.
        packed: whether q, k and v are one tensor, as with `pack_qkv`.
    """
    table = _embeddings(config, prefix)
    for i in range(config.num_hidden_layers):
        at, hub = f"layer.{i}.", f"{prefix}encoder.layer.{i}."
        for index, name in enumerate(_QKV):
            if packed:
                table |= _both(at + name, f"{hub}attention.qkv_proj", index, 3)
            else:
                table |= _both(at + name, f"{hub}attention.{name[0]}_proj")
        table |= _both(f"{at}attention_output", f"{hub}attention.o_proj")
        table |= _both(f"{at}attention_norm", f"{hub}attn_ln")
        table[f"{at}up.weight"] = Part(f"{hub}mlp.up_gate_proj.weight", 0, 2)
        table[f"{at}gate.weight"] = Part(f"{hub}mlp.up_gate_proj.weight", 1, 2)
        table |= _both(f"{at}down", f"{hub}mlp.down_proj")
        table |= _both(f"{at}mlp_norm", f"{hub}mlp_ln")
    return table


def _transformers_names(config: Config, prefix: str) -> Spelling:
    """The names of transformers' `GteModel`; `prefix` is before every name."""
    table = _embeddings(config, prefix)
    for i in range(config.num_hidden_layers):
        at, own = f"layer.{i}.", f"{prefix}layers.{i}."
        for name in _QKV:
            table |= _both(at + name, f"{own}self_attn.{name[0]}_proj")
        table |= _both(f"{at}attention_output", f"{own}self_attn.o_proj")
        table |= _both(f"{at}attention_norm", f"{own}post_attention_layernorm")
        table[f"{at}up.weight"] = f"{own}mlp.up_proj.weight"
        table[f"{at}gate.weight"] = f"{own}mlp.gate_proj.weight"
        table |= _both(f"{at}down", f"{own}mlp.down_proj")
        table |= _both(f"{at}mlp_norm", f"{own}post_mlp_layernorm")
    return table


# The pooler and the heads of masked language models and of classifiers.
_IGNORED = (
    r"((new|gte)\.)?pooler\..*",
    r"((new|gte)\.)?embeddings\.position_ids",
    r"lm_head\..*",
    r"classifier\..*",
)


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names.

    Names begin with `new.` or `gte.` in a model with a head.
    """
    spellings = (
        *(
            _hub_names(config, prefix, packed=packed)
            for packed in (True, False)
            for prefix in ("", "new.", "gte.")
        ),
        *(_transformers_names(config, prefix) for prefix in ("", "gte.")),
    )
    return Weights(checkpoint, spellings, ignored=_IGNORED)
