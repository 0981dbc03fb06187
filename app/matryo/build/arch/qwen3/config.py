"""The manifest's `[architecture]` table of a `qwen3`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.build.arch._counts import Blocks, Count


class Config(BaseModel):
    """The keys of transformers' `Qwen3Config` that shape the graph.

    Attributes:
        head_dim: width of a head; `num_attention_heads` times it need not be `hidden_size`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    num_hidden_layers: Blocks
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    intermediate_size: Count
    hidden_act: Literal["silu"]
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)]
    rope_theta: Annotated[float, Field(gt=0, le=1e12)]
    max_position_embeddings: Count
    vocab_size: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            msg = (
                f"num_attention_heads is {self.num_attention_heads}, but must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
            raise ValueError(msg)
        if self.head_dim % 2:
            msg = f"head_dim is {self.head_dim}, but must be even for rotary positions"
            raise ValueError(msg)
        return self
