"""The interface of an engine: what the layers above may ask of a loaded model."""

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
    """The vectors of one batch, and the cost of computing them.

    Attributes:
        embeddings: one float32 unit vector for each text, in order.
        n_padding: padding tokens that the matrix products computed too; always 0 for a graph
            that Matryo built.
        inference_s: seconds of the model's runs.
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
        """The manifest of the model."""
        ...

    @property
    def precision(self) -> Precision:
        """The precision of the model's products."""
        ...

    @property
    def fingerprint(self) -> str:
        """A name for everything that determines a vector, except what a request chooses."""
        ...

    @property
    def limits(self) -> EngineLimits:
        """The engine's limits and costs. They never change while the engine is loaded."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids: every id is at least 0 and less than this."""
        ...

    def tokenize(self, texts: Sequence[str], prefix: str = "") -> list[Encoded]:
        """Token ids of each text, special tokens included, uncut.

        Args:
            texts: the texts; of each, at most `most_chars` of the model's limit are read.
            prefix: put before each text whose tokens do not begin with one of the model's own
                prefixes.
        """
        ...

    @property
    def unknown_id(self) -> int | None:
        """The token id of everything that the vocabulary lacks; None if it lacks nothing."""
        ...

    def from_ids(self, ids: Sequence[int], prefix: str) -> Encoded:
        """Token ids of a text that the caller sent as ids, with prefix and special tokens.

        The result is not cut to the model's limit.

        Args:
            ids: ids of this model, each less than `vocab_size`, with or without special tokens at
                the two ends.
            prefix: prefix of the text. A text that already begins with one of the model's
                prefixes gets no other one.
        """
        ...

    def cut(self, ids: TokenIds) -> TokenIds:
        """The ids, cut to the model's limit; special tokens at the end are kept."""
        ...

    def embed(self, texts: Sequence[TokenIds], dimensions: Sequence[int]) -> BatchResult:
        """Vectors of a batch.

        Args:
            texts: token ids of each text; at least one text, each within the model's limit.
            dimensions: output size of each text, 1 to the native size.

        Raises:
            InferenceFailed: the run raised, or gave values that are not finite.
        """
        ...

    def hidden_states(self, ids: TokenIds) -> FloatArray:
        """The last hidden states of one text, which `embed` would pool; `(T, H)`.

        A graph that pools itself gives the text's vector, `(H,)`. Checks use this method.

        Raises:
            InferenceFailed: the run raised.
        """
        ...

    def close(self) -> None:
        """Make current and later runs fail, so that the process can end soon."""
        ...
