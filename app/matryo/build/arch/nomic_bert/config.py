"""What shapes a `nomic_bert`, as the manifest has it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.engine.onnx.interface import SOLO_TOKENS

_Size = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Transformers' words for the config.

    The hub's `config.json` spells some as GPT-2 does: `n_embd`, `n_layer`, `n_head`,
    `n_inner`, `rotary_emb_base`, `layer_norm_epsilon`.

    Attributes:
        moe_every_n_layers: of so many layers the second is a mixture of experts; 0 for none.
        moe_top_k: experts that compute each token.
        rotary_scaling_factor: stretches the rotary base for each text that is longer than
            `max_trained_positions` (dynamic NTK); None for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    intermediate_size: _Size
    hidden_act: Literal["swiglu", "gelu"]
    qkv_proj_bias: bool
    mlp_bias: bool
    layer_norm_eps: Annotated[float, Field(gt=0)]
    rope_theta: Annotated[float, Field(gt=0)]
    max_position_embeddings: _Size
    max_trained_positions: _Size = 2048
    rotary_scaling_factor: Annotated[float, Field(gt=0)] | None = None
    type_vocab_size: _Size
    vocab_size: _Size
    moe_every_n_layers: Annotated[int, Field(ge=0)] = 0
    num_experts: _Size = 1
    moe_top_k: _Size = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            msg = "hidden_size must be an even multiple of num_attention_heads"
            raise ValueError(msg)
        if self.rotary_scaling_factor and self.max_trained_positions < SOLO_TOKENS:
            # A batch has one rotary table, so none of its texts may be a stretched one.
            msg = f"max_trained_positions must be at least {SOLO_TOKENS} with rotary_scaling_factor"
            raise ValueError(msg)
        if self.moe_every_n_layers and self.hidden_act != "gelu":
            msg = "experts (moe_every_n_layers) are known with hidden_act = 'gelu' only"
            raise ValueError(msg)
        if self.moe_every_n_layers and not self.moe_top_k <= self.num_experts:
            msg = f"moe_top_k is {self.moe_top_k}, but num_experts only {self.num_experts}"
            raise ValueError(msg)
        return self

    @property
    def head_size(self) -> int:
        """Columns of one head; all of them are rotated."""
        return self.hidden_size // self.num_attention_heads

    def has_experts(self, i: int) -> bool:
        """Whether layer `i` is a mixture of experts."""
        return self.moe_every_n_layers > 0 and i % self.moe_every_n_layers == 1
