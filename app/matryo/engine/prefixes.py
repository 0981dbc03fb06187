"""Which texts already begin with one of a model's own prefixes, judged as the model sees them.

A model sees tokens. A text counts as prefixed if the model could not tell its tokens from those
of a prefix and some text after the prefix: `search_query:sky`, ` Search_Query : sky` and
`search_query: sky` are one text for an uncased WordPiece tokenizer. A text that the model tells
apart from all of these, such as one that only contains a prefix, is not prefixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tokenizers import Tokenizer

# What a tokenizer writes for white space before a word: SentencePiece's, and byte-level BPE's.
_WORD_MARKS = ("\u2581", "\u0120")


class Prefixes:
    """The prefixes of one model, as token ids.

    Args:
        tokenizer: of the model, without truncation and padding.
        own: every prefix that the model was trained with.
    """

    def __init__(self, tokenizer: Tokenizer, own: Sequence[str]) -> None:
        self._tokenizer: Any = tokenizer
        self._pieces: dict[str, list[int]] = {}
        # A prefix that ends in white space is followed by a word, any other by anything.
        self._own = tuple(
            (ids, prefix[-1:].isspace()) for prefix in own if (ids := self.pieces(prefix))
        )
        self._added = frozenset(cast("Any", tokenizer).get_added_tokens_decoder())
        # How the second of two words is written tells what a token that begins a word looks like.
        words = self._tokenizer.encode("a b", add_special_tokens=False).tokens
        self._mark = next((mark for mark in _WORD_MARKS if any(mark in w for w in words)), "")
        model = self._tokenizer.model
        self._continuation = str(getattr(model, "continuing_subword_prefix", None) or "")

    def pieces(self, prefix: str) -> list[int]:
        """Token ids of a prefix, without the white space at its end, which belongs to no token."""
        if prefix not in self._pieces:
            encoded = self._tokenizer.encode(prefix.rstrip(), add_special_tokens=False)
            self._pieces[prefix] = list(encoded.ids)
        return self._pieces[prefix]

    def begins(self, ids: Sequence[int], start: int = 0) -> bool:
        """Whether a text begins with one of the model's prefixes.

        Args:
            ids: of the text, without special tokens before it.
            start: index of the text's first token in `ids`.
        """
        for own, ends_in_space in self._own:
            end = start + len(own)
            if ids[start:end] != own:
                continue
            if end >= len(ids) or not ends_in_space or self._begins_word(ids[end]):
                return True
        return False

    def _begins_word(self, token_id: int) -> bool:
        """Whether a token may stand right after white space: no piece from inside a word may."""
        if token_id in self._added:
            return True
        token = str(self._tokenizer.id_to_token(token_id))
        if self._mark:
            return token.startswith(self._mark)
        return not (self._continuation and token.startswith(self._continuation))
