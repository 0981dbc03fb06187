"""The manifest's `[architecture]` table of a `new`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.build.arch import _rotary
from matryo.build.arch._counts import Blocks, Count
from matryo.build.checkpoint import FloatArray


class Config(BaseModel):
    """The keys of the config, named as in `NewConfig` of Alibaba-NLP/new-impl.

    Attributes:
        rope_scaling_factor: `factor` of the config's `rope_scaling` of type `ntk`; 1 for no
            scaling. The scaling does not depend on a text's length.
        type_vocab_size: number of token types; 0 for a model without token types.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    num_hidden_layers: Blocks
    num_attention_heads: Count
    intermediate_size: Count
    hidden_act: Literal["gelu"]
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)]
    rope_theta: Annotated[float, Field(gt=0, le=1e12)]
    # The reference does not scale with a factor below 1, and other implementations do.
    rope_scaling_factor: Annotated[float, Field(ge=1, le=1e6)] = 1.0
    max_position_embeddings: Count
    type_vocab_size: Annotated[int, Field(ge=0, le=1 << 22)]
    vocab_size: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            msg = (
                f"hidden_size is {self.hidden_size}, but must be an even multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
            raise ValueError(msg)
        return self

    def rotary_tables(self, n_tokens: int) -> tuple[FloatArray, FloatArray]:
        """Cosines and sines of the first positions; each `(n_tokens, head_size / 2)` float32.

        NTK scaling by `f` multiplies the rotary base by `f`, and divides every frequency by
        `f ** (2 / head_size)`. The highest frequency is therefore divided by `f ** (2 / head_size)`
        and the lowest by `f`.

        Source: https://kexue.fm/archives/9706, equation 6.
        """
        head_size, factor = self.hidden_size // self.num_attention_heads, self.rope_scaling_factor
        theta, slower = self.rope_theta * factor, factor ** (2 / head_size)
        return _rotary.rotary_tables(head_size, theta, n_tokens, slower=slower)
