"""What the layers above ask of a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.engine.limits import EngineLimits
from matryo.engine.postprocess import FloatArray
from matryo.engine.tokenizer import Encoded, TokenIds


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Vectors of one batch, and what they cost.

    Attributes:
        embeddings: one float32 unit vector for each text, in order.
        n_padding: padding tokens that the matrix products computed beside the real ones; graphs
            that Matryo builds compute none.
        inference_s: seconds in the model.
        postprocess_s: seconds from hidden states to vectors.
    """

    embeddings: list[FloatArray]
    n_padding: int
    inference_s: float
    postprocess_s: float


class Engine(Protocol):
    """A loaded model. Every method may be called from several threads at once."""

    @property
    def manifest(self) -> Manifest:
        """The model served."""
        ...

    @property
    def precision(self) -> Precision:
        """The precision served."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names everything that shapes a vector, apart from what a request chooses."""
        ...

    @property
    def limits(self) -> EngineLimits:
        """What the engine can do well; the same for as long as it is loaded."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids: every id is at least 0 and less than this."""
        ...

    def tokenize(self, texts: Sequence[str], prefix: str = "") -> list[Encoded]:
        """Token ids of each text, special tokens included, uncut.

        Args:
            texts: the texts.
            prefix: put before each text whose tokens do not begin with one of the model's own
                prefixes.
        """
        ...

    @property
    def unknown_id(self) -> int | None:
        """The token id of everything that the vocabulary lacks; None if it lacks nothing."""
        ...

    def from_ids(self, ids: Sequence[int], prefix: str) -> Encoded:
        """Token ids of a text that comes as ids of this model, with special tokens, uncut.

        Args:
            ids: each less than `vocab_size`, with or without special tokens at both ends.
            prefix: put before a text that does not begin with one of the model's own prefixes.
        """
        ...

    def cut(self, ids: TokenIds) -> TokenIds:
        """The ids cut to the model's limit."""
        ...

    def embed(self, texts: Sequence[TokenIds], dimensions: Sequence[int]) -> BatchResult:
        """Vectors of a batch.

        Args:
            texts: ids of each text, at least one text, each within the model's limit.
            dimensions: output size of each text, 1 to native.

        Raises:
            InferenceFailed: the run raised, or gave values that are not finite.
        """
        ...

    def hidden_states(self, ids: TokenIds) -> FloatArray:
        """Last hidden states `(T, H)` of one text, the ones that `embed` pools; for checks.

        Raises:
            InferenceFailed: the run raised.
        """
        ...

    def close(self) -> None:
        """Free the model; runs under way fail soon."""
        ...
