"""The manifest's `[architecture]` table of a `model2vec`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from matryo.build.arch._counts import Count


class Config(BaseModel):
    """The shape of the table.

    Attributes:
        hidden_size: width of a row.
        vocab_size: number of token ids. A file with row numbers has fewer rows than ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    vocab_size: Count

    @property
    def max_position_embeddings(self) -> None:
        """None: a static table has no positions, so that a text may have any length."""
        return None
