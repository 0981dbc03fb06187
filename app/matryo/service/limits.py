"""Bounds of one request, and of what the service does at a time."""

from __future__ import annotations

from dataclasses import dataclass

from matryo.core.errors import TooManyTexts, TooManyTokens

PIECE_TEXTS, PIECE_CHARACTERS = 128, 1 << 15
"""Texts and characters that are tokenised in one go, which takes about 10 ms. Between two pieces
other requests get a turn, and the service notices a caller that hung up or a request that is over
its limit. A longer text is a piece by itself."""

BATCH_PIECE_CHARACTERS = 1 << 12
"""Characters of a batch that are tokenised in one go. An online request interrupts the runs of a
batch, but not a piece, which keeps a core busy until the piece is done."""

INLINE_TEXTS, INLINE_CHARACTERS = 8, 1000
"""So little is tokenised on the event loop: the way to a thread and back costs more."""

WINDOW_TEXTS = 512
"""Texts of one request that a local caller sends of a long stream: enough of like length for full
batches, few enough to hold in memory."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request; None for no bound.

    Attributes:
        max_texts: texts, or arrays of token ids.
        max_tokens: tokens of all texts together, prefixes and special tokens included.
    """

    max_texts: int | None = None
    max_tokens: int | None = None

    def check_texts(self, n_texts: int) -> None:
        """Refuse a request with too many texts. A door calls this as soon as it knows the count.

        Raises:
            TooManyTexts: over `max_texts`.
        """
        if self.max_texts is not None and n_texts > self.max_texts:
            raise TooManyTexts(n_texts=n_texts, max_texts=self.max_texts)

    def check_tokens(self, n_tokens: int, *, exact: bool) -> None:
        """Refuse a request with too many tokens.

        Args:
            n_tokens: counted so far.
            exact: whether every text was counted.

        Raises:
            TooManyTokens: over `max_tokens`.
        """
        if self.max_tokens is not None and n_tokens > self.max_tokens:
            raise TooManyTokens(n_tokens=n_tokens, max_tokens=self.max_tokens, exact=exact)
