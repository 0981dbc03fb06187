"""The interface of an engine: what the layers above may ask of a loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.engine.interrupt import Interrupt
from matryo.engine.limits import EngineLimits
from matryo.engine.postprocess import FloatArray
from matryo.engine.tokenizer import Encoded, Side, Token, TokenIds


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The vectors of one batch, and the cost of computing them.

    Attributes:
        embeddings: one float32 vector for each text, in order.
        n_padding: padding tokens that the matrix products computed too; always 0 for a graph
            that Matryo built.
        inference_s: seconds of the model's runs.
        postprocess_s: seconds from hidden states to vectors.
    """

    embeddings: list[FloatArray]
    n_padding: int
    inference_s: float
    postprocess_s: float


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine was made of, and what runs it.

    Attributes:
        weights_sha256: of the checkpoint's weights.
        tokenizer_sha256: of the checkpoint's tokenizer.
        artifact_sha256: of the files that were built from them.
        native: the interface of matryo-native that the graph uses; 0 for none.
        onnxruntime: version of the library.
    """

    weights_sha256: str
    tokenizer_sha256: str
    artifact_sha256: str
    native: int
    onnxruntime: str


class Tokens(Protocol):
    """The tokens of one text."""

    def __len__(self) -> int:
        """Number of tokens, at least of those that are given."""
        ...

    def __iter__(self) -> Iterator[Token]:
        """The tokens in order."""
        ...


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
    def facts(self) -> EngineFacts:
        """What the engine was made of, and what runs it."""
        ...

    @property
    def limits(self) -> EngineLimits:
        """The engine's limits and costs. They never change while the engine is loaded."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids: every id is at least 0 and less than this."""
        ...

    def tokenize(
        self, texts: Sequence[str], prefix: str = "", side: Side = "start"
    ) -> list[Encoded]:
        """Token ids of each text, special tokens included, uncut.

        Args:
            texts: the texts; of each, at most `most_chars` of the model's limit are read.
            prefix: put before each text whose tokens do not begin with one of the model's own
                prefixes.
            side: the end of a very long text that is read.
        """
        ...

    def pieces(
        self, texts: Sequence[str], prefix: str = "", *, add_special_tokens: bool = True
    ) -> Sequence[Tokens]:
        """The tokens of each text with the strings that they stand for, uncut.

        Args:
            texts: the texts, each with at most `most_chars` characters of the model's limit.
            prefix: as for `tokenize`.
            add_special_tokens: whether the special tokens around a text are among its tokens.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The string of token ids, each less than `vocab_size`.

        Args:
            ids: ids of this model.
            skip_special_tokens: whether special tokens are left out.
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

    def cut(self, ids: TokenIds, side: Side = "start") -> TokenIds:
        """The ids, cut to the model's limit; special tokens at both ends are kept.

        Args:
            ids: of a text.
            side: the end of the text whose tokens are kept.
        """
        ...

    def embed(
        self,
        texts: Sequence[TokenIds],
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,
        interrupt: Interrupt | None = None,
    ) -> BatchResult:
        """Vectors of a batch.

        Args:
            texts: token ids of each text; at least one text, each within the model's limit.
            dimensions: output size of each text, 1 to the native size.
            normalize: whether each text's vector has unit length; None for all. A vector that has
                not is what the model gives before the last step, `l2_normalize`.
            interrupt: ends the run early; None for a run that always ends by itself.

        Raises:
            Interrupted: `interrupt` was set.
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
