"""The tensor names of `nomic_bert` in checkpoints: the hub's, transformers' and llama.cpp's."""

from __future__ import annotations

from matryo.build.arch.nomic_bert.config import Config
from matryo.build.checkpoint import Checkpoint, Part, Spelling, Weights


def _spellings(config: Config) -> tuple[Spelling, ...]:
    """The tensor names that a checkpoint may use: see the three functions below."""
    return _hub_names(config), _transformers_names(config), _gguf_names(config)


def _both(ours: str, theirs: str, *, bias: bool) -> Spelling:
    """Our and the file's name of a module's weight, and of its bias if there is one."""
    return {f"{ours}.{suffix}": f"{theirs}.{suffix}" for suffix in _suffixes(bias=bias)}


def _suffixes(*, bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _thirds(at: str, theirs: str, *, bias: bool) -> Spelling:
    """q, k and v as thirds of a joint tensor, whose rows are all of q, then k, then v."""
    return {
        f"{at}{name}.{suffix}": Part(f"{theirs}.{suffix}", index, 3)
        for index, name in enumerate(("query", "key", "value"))
        for suffix in _suffixes(bias=bias)
    }


def _hub_names(config: Config) -> Spelling:
    """The names of nomic-ai's checkpoints on the hub."""
    qkv, mlp, n_experts = config.qkv_proj_bias, config.mlp_bias, config.num_experts
    table: dict[str, str | Part] = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
        **_both("embedding_norm", "emb_ln", bias=True),
    }
    for i in range(config.num_hidden_layers):
        at, hub = f"layer.{i}.", f"encoder.layers.{i}."
        table |= _thirds(at, f"{hub}attn.Wqkv", bias=qkv)
        table |= _both(f"{at}attention_output", f"{hub}attn.out_proj", bias=qkv)
        table |= _both(f"{at}attention_norm", f"{hub}norm1", bias=True)
        table |= _both(f"{at}mlp_norm", f"{hub}norm2", bias=True)
        if config.has_experts(i):
            table[f"{at}router.weight"] = f"{hub}mlp.router.layer.weight"
            for e in range(n_experts):
                w1, w2 = f"{hub}mlp.experts.mlp.w1", f"{hub}mlp.experts.mlp.w2"
                table[f"{at}expert.{e}.up.weight"] = Part(w1, e, n_experts)
                # The reference multiplies by w1 transposed, and by w2 as it is.
                table[f"{at}expert.{e}.down.weight"] = Part(w2, e, n_experts, transposed=True)
            if mlp:
                table[f"{at}experts.bias"] = f"{hub}mlp.experts.bias"
            continue
        gated = config.hidden_act == "swiglu"
        table |= _both(f"{at}up", f"{hub}mlp.{'fc11' if gated else 'fc1'}", bias=mlp)
        table |= _both(f"{at}gate", f"{hub}mlp.fc12", bias=mlp) if gated else {}
        table |= _both(f"{at}down", f"{hub}mlp.fc2", bias=mlp)
    return table


def _transformers_names(config: Config) -> Spelling:
    """The names of transformers' `NomicBertModel`, which has no experts."""
    qkv, mlp = config.qkv_proj_bias, config.mlp_bias
    table: dict[str, str | Part] = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "token_type_embeddings": "embeddings.token_type_embeddings.weight",
        **_both("embedding_norm", "embeddings.LayerNorm", bias=True),
    }
    for i in range(config.num_hidden_layers):
        at, own = f"layer.{i}.", f"layers.{i}."
        table |= _both(f"{at}query", f"{own}self_attn.q_proj", bias=qkv)
        table |= _both(f"{at}key", f"{own}self_attn.k_proj", bias=qkv)
        table |= _both(f"{at}value", f"{own}self_attn.v_proj", bias=qkv)
        table |= _both(f"{at}attention_output", f"{own}self_attn.o_proj", bias=qkv)
        table |= _both(f"{at}attention_norm", f"{own}post_attention_layernorm", bias=True)
        table |= _both(f"{at}mlp_norm", f"{own}post_mlp_layernorm", bias=True)
        table |= _both(f"{at}up", f"{own}mlp.up_proj", bias=mlp)
        if config.hidden_act == "swiglu":
            table |= _both(f"{at}gate", f"{own}mlp.gate_proj", bias=mlp)
        table |= _both(f"{at}down", f"{own}mlp.down_proj", bias=mlp)
    return table


def _gguf_names(config: Config) -> Spelling:
    """The names of llama.cpp, whose conversion/bert.py leaves `experts.bias` out."""
    qkv, mlp, n_experts = config.qkv_proj_bias, config.mlp_bias, config.num_experts
    table: dict[str, str | Part] = {
        "word_embeddings": "token_embd.weight",
        "token_type_embeddings": "token_types.weight",
        **_both("embedding_norm", "token_embd_norm", bias=True),
    }
    for i in range(config.num_hidden_layers):
        at, blk = f"layer.{i}.", f"blk.{i}."
        table |= _thirds(at, f"{blk}attn_qkv", bias=qkv)
        table |= _both(f"{at}attention_output", f"{blk}attn_output", bias=qkv)
        table |= _both(f"{at}attention_norm", f"{blk}attn_output_norm", bias=True)
        table |= _both(f"{at}mlp_norm", f"{blk}layer_output_norm", bias=True)
        if config.has_experts(i):
            table[f"{at}router.weight"] = f"{blk}ffn_gate_inp.weight"
            for e in range(n_experts):
                table[f"{at}expert.{e}.up.weight"] = Part(f"{blk}ffn_up_exps.weight", e, n_experts)
                down = Part(f"{blk}ffn_down_exps.weight", e, n_experts)
                table[f"{at}expert.{e}.down.weight"] = down
            continue
        table |= _both(f"{at}up", f"{blk}ffn_up", bias=mlp)
        if config.hidden_act == "swiglu":
            table |= _both(f"{at}gate", f"{blk}ffn_gate", bias=mlp)
        table |= _both(f"{at}down", f"{blk}ffn_down", bias=mlp)
    return table


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names; `_spellings` has the names of the file."""
    return Weights(checkpoint, _spellings(config), ignored=(r"pooler\..*", r"cls\..*"))
