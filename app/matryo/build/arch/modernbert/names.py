"""The tensor names of `modernbert` in checkpoints: transformers' and llama.cpp's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matryo.build.arch.modernbert.config import Config
from matryo.build.checkpoint import Checkpoint, Part, Spelling, Weights


@dataclass(frozen=True, slots=True)
class _Names:
    """The module names of one family of files.

    Attributes:
        words: name of the word table.
        embedding_norm: name of the norm after the embeddings.
        final_norm: name of the norm after the last layer.
        layer: prefix of a layer's modules; `{}` is the layer's index.
        modules: name of each module of a layer, by our name. `qkv` has q, then k, then v.
            `gate_up` has the half that the activation applies to, then the other half.
    """

    words: str
    embedding_norm: str
    final_norm: str
    layer: str
    modules: Mapping[str, str]


_HUB = _Names(
    "embeddings.tok_embeddings",
    "embeddings.norm",
    "final_norm",
    "layers.{}.",
    {
        "attention_norm": "attn_norm",
        "qkv": "attn.Wqkv",
        "attention_output": "attn.Wo",
        "mlp_norm": "mlp_norm",
        "gate_up": "mlp.Wi",
        "down": "mlp.Wo",
    },
)
_GGUF = _Names(
    "token_embd",
    "token_embd_norm",
    "output_norm",
    "blk.{}.",
    {
        "attention_norm": "attn_norm",
        "qkv": "attn_qkv",
        "attention_output": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate_up": "ffn_up",
        "down": "ffn_down",
    },
)


def _spelling(config: Config, prefix: str, names: _Names) -> Spelling:
    """Where one family of files has each of our tensors; `prefix` is before every name."""

    def tensors(
        ours: str, theirs: str, index: int = 0, of: int = 1, *, bias: bool
    ) -> dict[str, Part]:
        """A module's weight, and its bias if there is one, as an equal part of the file's."""
        suffixes = ("weight", "bias") if bias else ("weight",)
        return {f"{ours}.{suffix}": Part(f"{theirs}.{suffix}", index, of) for suffix in suffixes}

    norm_bias, attention_bias, mlp_bias = config.norm_bias, config.attention_bias, config.mlp_bias
    table = {"word_embeddings": Part(f"{prefix}{names.words}.weight")}
    table |= tensors("embedding_norm", prefix + names.embedding_norm, bias=norm_bias)
    table |= tensors("final_norm", prefix + names.final_norm, bias=norm_bias)
    for i in range(config.num_hidden_layers):
        at = f"layer.{i}."
        modules = {
            ours: prefix + names.layer.format(i) + name for ours, name in names.modules.items()
        }
        if i:
            table |= tensors(f"{at}attention_norm", modules["attention_norm"], bias=norm_bias)
        for index, name in enumerate(("query", "key", "value")):
            table |= tensors(at + name, modules["qkv"], index, 3, bias=attention_bias)
        table |= tensors(f"{at}attention_output", modules["attention_output"], bias=attention_bias)
        table |= tensors(f"{at}mlp_norm", modules["mlp_norm"], bias=norm_bias)
        for index, name in enumerate(("gate", "up")):
            table |= tensors(at + name, modules["gate_up"], index, 2, bias=mlp_bias)
        table |= tensors(f"{at}down", modules["down"], bias=mlp_bias)
    return table


# The heads of masked language models and of classifiers, as transformers and llama.cpp name them.
_IGNORED = (r"head\..*", r"decoder\..*", r"classifier\..*", r"cls\..*")


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names.

    The file's names are those of transformers' `ModernBertModel`, the same after `model.` as in a
    model with a head, or those of llama.cpp.
    """
    spellings = (
        _spelling(config, "", _HUB),
        _spelling(config, "model.", _HUB),
        _spelling(config, "", _GGUF),
    )
    return Weights(checkpoint, spellings, ignored=_IGNORED)
