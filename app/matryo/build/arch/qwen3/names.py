"""The tensor names of `qwen3` in checkpoints: transformers' and llama.cpp's."""

from __future__ import annotations

from collections.abc import Mapping

from matryo.build.arch.qwen3.config import Config
from matryo.build.checkpoint import Checkpoint, Spelling, Weights

_HUB: Mapping[str, str] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_output": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_GGUF: Mapping[str, str] = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_output": "attn_output",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def _names(
    config: Config, words: str, layer: str, modules: Mapping[str, str], norm: str
) -> Spelling:
    """Where one family of files has each of our tensors.

    Args:
        config: the model's config.
        words: name of the word table.
        layer: prefix of a layer's modules; `{}` is the layer's index.
        modules: name of each module of a layer, by our name.
        norm: name of the norm after the last layer.
    """
    return {"word_embeddings": words, "norm.weight": norm} | {
        f"layer.{i}.{ours}.weight": f"{layer.format(i)}{theirs}.weight"
        for i in range(config.num_hidden_layers)
        for ours, theirs in modules.items()
    }


def _hub_names(config: Config, prefix: str) -> Spelling:
    """The names of transformers' `Qwen3Model` behind a prefix."""
    words, norm = f"{prefix}embed_tokens.weight", f"{prefix}norm.weight"
    return _names(config, words, f"{prefix}layers.{{}}.", _HUB, norm)


def _spellings(config: Config) -> tuple[Spelling, ...]:
    """The tensor names that a checkpoint may use.

    They are those of transformers' `Qwen3Model`, those of `Qwen3ForCausalLM`, whose names begin
    with `model.`, and those of llama.cpp.
    """
    return (
        _hub_names(config, ""),
        _hub_names(config, "model."),
        _names(config, "token_embd.weight", "blk.{}.", _GGUF, "output_norm.weight"),
    )


# The head that predicts the next token.
_IGNORED = (r"lm_head\.weight", r"output\.weight")


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names; `_spellings` has the names of the file."""
    return Weights(checkpoint, _spellings(config), ignored=_IGNORED)
