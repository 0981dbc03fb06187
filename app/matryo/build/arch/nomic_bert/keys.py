"""Where a `nomic_bert`'s own files have the values of its config.

Sources: `configuration_hf_nomic_bert.py` in nomic-ai/nomic-bert-2048; transformers'
`NomicBertConfig`; llama.cpp, conversion/bert.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from matryo.build.arch._keys import Key, n_rows
from matryo.build.checkpoint import Checkpoint

HUB_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("hidden_size", "n_embd"), 768),
    "num_hidden_layers": Key(("num_hidden_layers", "n_layer"), 12),
    "num_attention_heads": Key(("num_attention_heads", "n_head"), 12),
    "intermediate_size": Key(("intermediate_size", "n_inner"), 3072),
    "hidden_act": Key(("hidden_act", "activation_function"), "swiglu", meanings={"silu": "swiglu"}),
    "qkv_proj_bias": Key(("qkv_proj_bias",), default=False),
    "mlp_bias": Key(("mlp_fc1_bias", "mlp_bias"), default=False),
    "layer_norm_eps": Key(("layer_norm_eps", "layer_norm_epsilon"), 1e-12),
    "rope_theta": Key(("rope_theta", "rope_parameters.rope_theta", "rotary_emb_base"), 1000.0),
    "max_position_embeddings": Key(("max_position_embeddings", "n_positions"), 2048),
    "max_trained_positions": Key(("max_trained_positions",), optional=True, soft=True),
    "rotary_scaling_factor": Key(("rotary_scaling_factor",), optional=True, soft=True),
    "type_vocab_size": Key(("type_vocab_size",), 2),
    "vocab_size": Key(("vocab_size",), 30528),
    "moe_every_n_layers": Key(("moe_every_n_layers",), 0),
    "num_experts": Key(("num_experts",), optional=True, only_if="moe_every_n_layers"),
    "moe_top_k": Key(("moe_top_k",), optional=True, only_if="moe_every_n_layers"),
}
"""The names of the hub's `config.json` and of transformers', with the defaults of the latter."""

HUB_FIXED: Mapping[str, tuple[object, ...]] = {
    "prenorm": (False,),
    "use_rms_norm": (False, None),
    "parallel_block": (False,),
    "causal": (False,),
    "rotary_emb_fraction": (1.0, 1),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "moe_normalize_expert_weights": (False,),
    "num_shared_experts": (0,),
    "rope_parameters.rope_type": ("default",),
}
"""Keys of `config.json` that change the result, and the values that the graph computes."""

GGUF_ARCHITECTURES = ("nomic-bert", "nomic-bert-moe")
"""What llama.cpp's conversion calls the architecture."""

GGUF_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("{arch}.embedding_length",)),
    "num_hidden_layers": Key(("{arch}.block_count",)),
    "num_attention_heads": Key(("{arch}.attention.head_count",)),
    "intermediate_size": Key(("{arch}.feed_forward_length",)),
    "layer_norm_eps": Key(("{arch}.attention.layer_norm_epsilon",)),
    "rope_theta": Key(("{arch}.rope.freq_base",)),
    # The file has the length of the training, which limits no table.
    "max_position_embeddings": Key(("{arch}.context_length",), soft=True),
    "moe_every_n_layers": Key(("{arch}.moe_every_n_layers",), 0),
    "num_experts": Key(("{arch}.expert_count",), optional=True, only_if="moe_every_n_layers"),
    "moe_top_k": Key(("{arch}.expert_used_count",), optional=True, only_if="moe_every_n_layers"),
}
"""Where the metadata of a GGUF file have each key."""


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:
    """The values that the tensors of a GGUF file show."""
    names = checkpoint.names
    return {
        "hidden_act": "swiglu" if "blk.0.ffn_gate.weight" in names else "gelu",
        "qkv_proj_bias": "blk.0.attn_qkv.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "type_vocab_size": n_rows(checkpoint, "token_types.weight"),
        "vocab_size": n_rows(checkpoint, "token_embd.weight"),
    }
