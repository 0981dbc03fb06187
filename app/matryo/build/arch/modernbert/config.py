"""The manifest's `[architecture]` table of a `modernbert`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.build.arch._counts import Blocks, Count


class Config(BaseModel):
    """The keys of the config, named as in transformers' `ModernBertConfig`.

    Attributes:
        global_attn_every_n_layers: in each group of this many layers the first layer has global
            attention. Without effect if there are `layer_types`.
        layer_types: the attention of each layer; empty for `global_attn_every_n_layers`.
        local_attention: width of the window of a local layer: a token attends to the tokens at
            most half as many positions away, and to itself. The bound limits the scores of a
            block, and no published model has more than 128.
        global_rope_theta: the rotary base of layers with global attention.
        local_rope_theta: the rotary base of layers with local attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    num_hidden_layers: Blocks
    num_attention_heads: Count
    intermediate_size: Count
    hidden_activation: Literal["gelu", "silu"]
    norm_eps: Annotated[float, Field(gt=0, le=1)]
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    global_attn_every_n_layers: Blocks = 3
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] = ()
    local_attention: Annotated[int, Field(ge=2, le=1024)] = 128
    global_rope_theta: Annotated[float, Field(gt=0, le=1e12)] = 160_000.0
    local_rope_theta: Annotated[float, Field(gt=0, le=1e12)] = 10_000.0
    max_position_embeddings: Count
    vocab_size: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            msg = (
                f"hidden_size is {self.hidden_size}, but must be an even multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
            raise ValueError(msg)
        if len(self.layer_types) not in (0, self.num_hidden_layers):
            msg = (
                f"layer_types has {len(self.layer_types)} entries, but must have one for each of "
                f"num_hidden_layers = {self.num_hidden_layers}, or none"
            )
            raise ValueError(msg)
        return self

    @property
    def head_size(self) -> int:
        """Width of one head; rotary positions apply to all of it."""
        return self.hidden_size // self.num_attention_heads

    @property
    def window(self) -> int:
        """Most positions between a query and a key of a local layer."""
        return self.local_attention // 2

    def is_local(self, i: int) -> bool:
        """Whether layer `i` has local attention."""
        if self.layer_types:
            return self.layer_types[i] == "sliding_attention"
        return i % self.global_attn_every_n_layers > 0

    def rope_theta(self, *, local: bool) -> float:
        """The rotary base of the layers with local, or with global attention."""
        return self.local_rope_theta if local else self.global_rope_theta
