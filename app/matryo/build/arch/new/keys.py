"""Where a `new`'s own files have the values of its config.

Sources: `configuration.py` in Alibaba-NLP/new-impl; transformers' `GteConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping

from matryo.build.arch._keys import Key

HUB_KEYS: Mapping[str, Key] = {
    "hidden_size": Key(("hidden_size",), 768),
    "num_hidden_layers": Key(("num_hidden_layers",), 12),
    "num_attention_heads": Key(("num_attention_heads",), 12),
    "intermediate_size": Key(("intermediate_size",), 3072),
    "hidden_act": Key(("hidden_act",), "gelu"),
    "layer_norm_eps": Key(("layer_norm_eps",), 1e-12),
    # The default of NewConfig is 10,000 and that of GteConfig 160,000: the file must say it.
    "rope_theta": Key(("rope_parameters.rope_theta", "rope_theta")),
    "rope_scaling_factor": Key(("rope_parameters.factor", "rope_scaling.factor"), 1.0),
    "max_position_embeddings": Key(("max_position_embeddings",)),
    "type_vocab_size": Key(("type_vocab_size",), 1),
    "vocab_size": Key(("vocab_size",)),
}
"""Where `config.json` has each key, and the defaults that `NewConfig` and `GteConfig` share."""

HUB_FIXED: Mapping[str, tuple[object, ...]] = {
    "position_embedding_type": ("rope",),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_scale": (False,),
    "rope_scaling.type": ("ntk",),
    "rope_scaling.mixed_b": (None,),
    "rope_parameters.type": ("ntk",),
    "rope_parameters.rope_type": ("default", "ntk"),
    "rope_parameters.mixed_b": (None,),
}
"""Keys of `config.json` that change the result, and the values that the graph computes."""

GGUF_ARCHITECTURES: tuple[str, ...] = ()
"""llama.cpp's conversion does not know the architecture."""

GGUF_KEYS: Mapping[str, Key] = {}
