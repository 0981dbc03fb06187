"""The manifest's `[architecture]` table of a `nomic_bert`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.build.arch._counts import Blocks, Count
from matryo.engine.onnx.interface import SOLO_TOKENS


class Config(BaseModel):
    """The keys of the config, named as in transformers' `NomicBertConfig`.

    The hub's `config.json` has GPT-2's names for some of them: `n_embd`, `n_layer`, `n_head`,
    `n_inner`, `rotary_emb_base` and `layer_norm_epsilon`.

    Attributes:
        max_trained_positions: longest text, in tokens, that the model was trained on.
        rotary_scaling_factor: factor of dynamic NTK, which enlarges the rotary base for texts
            over `max_trained_positions`; None leaves the base unchanged.
        moe_every_n_layers: in each group of this many layers the second layer is a mixture of
            experts; 0 for a model without experts.
        num_experts: experts of each mixture.
        moe_top_k: experts that compute each token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    num_hidden_layers: Blocks
    num_attention_heads: Count
    intermediate_size: Count
    hidden_act: Literal["swiglu", "gelu"]
    qkv_proj_bias: bool
    mlp_bias: bool
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)]
    rope_theta: Annotated[float, Field(gt=0, le=1e12)]
    max_position_embeddings: Count
    max_trained_positions: Count = 2048
    rotary_scaling_factor: Annotated[float, Field(gt=0, le=1e6)] | None = None
    type_vocab_size: Count
    vocab_size: Count
    moe_every_n_layers: Annotated[int, Field(ge=0)] = 0
    num_experts: Blocks = 1
    moe_top_k: Blocks = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            msg = (
                f"hidden_size is {self.hidden_size}, but must be an even multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
            raise ValueError(msg)
        if self.rotary_scaling_factor and self.head_size == 2:  # noqa: PLR2004
            msg = "hidden_size / num_attention_heads is 2; rotary_scaling_factor needs 4 or more"
            raise ValueError(msg)
        if self.rotary_scaling_factor and self.max_trained_positions < SOLO_TOKENS:
            # A batch has one rotary table. A text that NTK stretches must therefore run alone.
            msg = (
                f"max_trained_positions is {self.max_trained_positions}, but must be at least "
                f"{SOLO_TOKENS} with rotary_scaling_factor"
            )
            raise ValueError(msg)
        if self.moe_every_n_layers and self.hidden_act != "gelu":
            msg = (
                f"hidden_act is '{self.hidden_act}', but a model with experts "
                "(moe_every_n_layers > 0) must have 'gelu'"
            )
            raise ValueError(msg)
        if self.moe_every_n_layers and not self.moe_top_k <= self.num_experts:
            msg = (
                f"moe_top_k is {self.moe_top_k}, but must be at most num_experts = "
                f"{self.num_experts}"
            )
            raise ValueError(msg)
        return self

    @property
    def head_size(self) -> int:
        """Width of one head; rotary positions apply to all of it."""
        return self.hidden_size // self.num_attention_heads

    def has_experts(self, i: int) -> bool:
        """Whether layer `i` is a mixture of experts."""
        return self.moe_every_n_layers > 0 and i % self.moe_every_n_layers == 1
