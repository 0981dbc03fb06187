"""Where a `modernbert`'s own files have the values of its config.

Sources: `ModernBertConfig` in transformers 4.48 and 5; llama.cpp, conversion/base.py,
conversion/bert.py and src/models/modern-bert.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from matryo.build.arch._keys import Key
from matryo.build.checkpoint import Checkpoint

HUB_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("hidden_size",), 768),
    "num_hidden_layers": Key(("num_hidden_layers",), 22),
    "num_attention_heads": Key(("num_attention_heads",), 12),
    "intermediate_size": Key(("intermediate_size",), 1152),
    "hidden_activation": Key(("hidden_activation",), "gelu"),
    "norm_eps": Key(("norm_eps",), 1e-5),
    "norm_bias": Key(("norm_bias",), default=False),
    "attention_bias": Key(("attention_bias",), default=False),
    "mlp_bias": Key(("mlp_bias",), default=False),
    "global_attn_every_n_layers": Key(("global_attn_every_n_layers",), 3),
    "layer_types": Key(("layer_types",), ()),
    "local_attention": Key(("local_attention",), 128),
    "global_rope_theta": Key(
        ("rope_parameters.full_attention.rope_theta", "global_rope_theta"), 160_000.0
    ),
    "local_rope_theta": Key(
        ("rope_parameters.sliding_attention.rope_theta", "local_rope_theta"), 10_000.0
    ),
    "max_position_embeddings": Key(("max_position_embeddings",), 8192),
    "vocab_size": Key(("vocab_size",), 50368),
}
"""Where `config.json` has each key, as transformers 4 and 5 write it."""

HUB_FIXED: Mapping[str, tuple[object, ...]] = {
    "rope_scaling": (None,),
    "rope_parameters.full_attention.rope_type": ("default",),
    "rope_parameters.sliding_attention.rope_type": ("default",),
}
"""Keys of `config.json` that change the result, and the values that the graph computes."""

GGUF_ARCHITECTURES = ("modern-bert",)
"""What llama.cpp's conversion calls the architecture."""

GGUF_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("{arch}.embedding_length",)),
    "num_hidden_layers": Key(("{arch}.block_count",)),
    "num_attention_heads": Key(("{arch}.attention.head_count",)),
    "intermediate_size": Key(("{arch}.feed_forward_length",)),
    "hidden_activation": Key(("{arch}.hidden_activation",), "gelu"),
    # The conversion writes norm_eps under the first name, although the norm is no RMS norm.
    "norm_eps": Key(
        ("{arch}.attention.layer_norm_rms_epsilon", "{arch}.attention.layer_norm_epsilon")
    ),
    "global_attn_every_n_layers": Key(("{arch}.attention.sliding_window_pattern",), 3),
    "local_attention": Key(("{arch}.attention.sliding_window",)),
    "global_rope_theta": Key(("{arch}.rope.freq_base",)),
    "local_rope_theta": Key(("{arch}.rope.freq_base_swa",)),
    "max_position_embeddings": Key(("{arch}.context_length",)),
}
"""Where the metadata of a GGUF file have each key."""


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:
    """The values that the tensors of a GGUF file show."""
    names = checkpoint.names
    return {
        "norm_bias": "token_embd_norm.bias" in names,
        "attention_bias": "blk.0.attn_qkv.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "vocab_size": checkpoint.shape("token_embd.weight")[0],
    }
