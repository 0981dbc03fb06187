"""`model_type = "xlm_roberta"`: BERT's encoder whose positions begin after the padding token's id.

The graph is that of RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-RoBERTa (Conneau et al. 2019,
arXiv:1911.02116) and CamemBERT (Martin et al. 2019, arXiv:1911.03894), which differ in vocabulary
and training alone. `roberta` is another name of this module.

All tensor names are those of `bert`, and a graph of `bert` would run with the same weights. The
vectors would be wrong, because BERT gives the first token another row of the position table; see
`_positions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from matryo.build.arch import _layers as layers
from matryo.build.arch import bert
from matryo.build.arch._keys import Key, n_rows
from matryo.build.arch._layers import Layers
from matryo.build.arch._positions import emit_counted_positions, np_counted_positions
from matryo.build.arch._post_norm import (
    GGUF,
    HUB,
    emit_encoder,
    gguf_spellings,
    hub_spellings,
    ignored,
    np_encoder,
)
from matryo.build.checkpoint import Checkpoint, FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.core.choices import Precision

if TYPE_CHECKING:
    from matryo.build.checkpoint.gguf import GgufCheckpoint

HUB_KEYS: Mapping[str, Key] = {
    **bert.HUB_KEYS,
    "pad_token_id": Key(("pad_token_id",), 1),
    "vocab_size": Key(("vocab_size",)),  # the three models have three defaults
}

HUB_FIXED = bert.HUB_FIXED

GGUF_ARCHITECTURES = bert.GGUF_ARCHITECTURES
"""llama.cpp says `bert` for BERT, too. A file is a RoBERTa's if its tokenizer is `t5` or `gpt2`."""

GGUF_KEYS: Mapping[str, Key] = {
    **bert.GGUF_KEYS,
    # A CamemBERT's table keeps all rows, which looks like a longer table without some.
    "max_position_embeddings": Key((), optional=True, soft=True),
    "pad_token_id": Key(("tokenizer.ggml.padding_token_id",), 1),
}


def from_gguf(checkpoint: GgufCheckpoint) -> dict[str, object]:
    """The values that the tensors of a GGUF file show, and those of every such file.

    llama.cpp leaves the rows out that are no token's position; see `Config`.
    """
    pad = checkpoint.integer("tokenizer.ggml.padding_token_id")
    rows = n_rows(checkpoint, "position_embd.weight")
    return {
        "hidden_act": "gelu",
        "max_position_embeddings": rows + (1 if pad is None else pad) + 1,
        "type_vocab_size": n_rows(checkpoint, "token_types.weight"),
        "vocab_size": n_rows(checkpoint, "token_embd.weight"),
    }


class Config(bert.Config):
    """The keys of Hugging Face's `XLMRobertaConfig` that shape the graph.

    Attributes:
        max_position_embeddings: rows of the position table, of which the first `pad_token_id + 1`
            are no token's position.
        pad_token_id: id of the padding token.
    """

    pad_token_id: Annotated[int, Field(ge=0, le=1 << 22)]

    @model_validator(mode="after")
    def _check_positions(self) -> Self:
        if self.max_tokens < 1:
            msg = (
                f"max_position_embeddings is {self.max_position_embeddings}, but must be greater "
                f"than pad_token_id + 1 = {self.pad_token_id + 1}"
            )
            raise ValueError(msg)
        return self

    @property
    def max_tokens(self) -> int:
        """The most tokens that a text may have."""
        return self.max_position_embeddings - self.pad_token_id - 1


def bind(checkpoint: Checkpoint, config: Config) -> Weights:
    """The tensors of `checkpoint`, under our names."""
    n_layers = config.num_hidden_layers
    tables = (*hub_spellings(HUB, n_layers, "roberta."), *gguf_spellings(GGUF, n_layers))
    weights = Weights(checkpoint, tables, ignored=ignored("roberta."))
    if GGUF.tables["position_embeddings"] not in checkpoint.names:
        # Only llama.cpp leaves rows out. Reading one row compares the shape with the config.
        shape = (config.max_position_embeddings, config.hidden_size)
        weights.read("position_embeddings", shape, slice(0, 1))
    return weights


def emit(graph: GraphBuilder, weights: Weights, config: Config, precision: Precision) -> None:
    """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
    hidden = config.hidden_size
    net = Layers(graph, weights, hidden, precision)
    words = net.embed_tokens((config.vocab_size, hidden), config.type_vocab_size)
    shape = (config.max_position_embeddings, hidden)
    positions = emit_counted_positions(net, shape, config.pad_token_id)
    emit_encoder(net, graph.op("Add", words, positions), config.encoder)


def forward(
    weights: Weights, config: Config, texts: Sequence[NDArray[np.int64]]
) -> list[FloatArray]:
    """Hidden states of each text, `(T, H)` float32, computed in numpy."""
    hidden = config.hidden_size
    table = (config.vocab_size, hidden)
    x = layers.np_embed_tokens(weights, table, config.type_vocab_size, np.concatenate(texts))
    shape = (config.max_position_embeddings, hidden)
    x = x + np_counted_positions(weights, shape, config.pad_token_id, texts)
    return np_encoder(weights, x, config.encoder, [len(ids) for ids in texts])
