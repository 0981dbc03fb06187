"""Where the files of a `qwen3` have the values of its config."""

from __future__ import annotations

from collections.abc import Mapping

from matryo.build.arch._keys import Key, n_rows
from matryo.build.checkpoint import Checkpoint

HUB_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("hidden_size",), 4096),
    "num_hidden_layers": Key(("num_hidden_layers",), 32),
    "num_attention_heads": Key(("num_attention_heads",), 32),
    "num_key_value_heads": Key(("num_key_value_heads",), 32),
    "head_dim": Key(("head_dim",), 128),
    "intermediate_size": Key(("intermediate_size",), 22016),
    "hidden_act": Key(("hidden_act",), "silu"),
    "rms_norm_eps": Key(("rms_norm_eps",), 1e-6),
    "rope_theta": Key(("rope_parameters.rope_theta", "rope_theta"), 10000.0),
    "max_position_embeddings": Key(("max_position_embeddings",), 32768),
    "vocab_size": Key(("vocab_size",), 151936),
}
"""The names of each value in config.json, and the default of transformers' `Qwen3Config`."""

HUB_FIXED: Mapping[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "layer_types": ("full_attention",),
    "is_causal": (True,),
    "use_bidirectional_attention": (False, None),
    "rope_scaling": (None,),
    "rope_parameters.rope_type": ("default",),
}
"""Keys of config.json that change the result; the graph is right for these values only."""

GGUF_ARCHITECTURES: tuple[str, ...] = ("qwen3",)

GGUF_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("{arch}.embedding_length",)),
    "num_hidden_layers": Key(("{arch}.block_count",)),
    "num_attention_heads": Key(("{arch}.attention.head_count",)),
    "num_key_value_heads": Key(("{arch}.attention.head_count_kv",)),
    "head_dim": Key(("{arch}.attention.key_length",)),
    "intermediate_size": Key(("{arch}.feed_forward_length",)),
    "rms_norm_eps": Key(("{arch}.attention.layer_norm_rms_epsilon",)),
    "rope_theta": Key(("{arch}.rope.freq_base",), 10000.0),
    "max_position_embeddings": Key(("{arch}.context_length",)),
}
"""The metadata key of each value. A file of llama.cpp has no activation, which is always SiLU."""


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:
    """The values that the tensors of a GGUF file show, and those of every such file."""
    return {"hidden_act": "silu", "vocab_size": n_rows(checkpoint, "token_embd.weight")}
