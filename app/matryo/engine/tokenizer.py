"""Turns texts into token ids with the model's own `tokenizer.json`.

The tokenizers library releases the GIL and tokenises a batch on several threads. The service adds
prefixes to texts and refuses texts over the model's limit. This module only cuts the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from matryo.core.errors import ArtifactDamaged

TokenIds = NDArray[np.int64]

# Tokenising 16 MB takes seconds. The tokenizer therefore reads only the head of a very long text
# first: this many characters for each token of the limit. English has about 4 characters a token.
_CHARS_PER_TOKEN = 32
# The whole text may give other tokens than its head where the head ends. This many tokens at the
# end of a head are therefore never used.
_HEAD_MARGIN = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text, with special tokens.

    Attributes:
        ids: `(n_tokens,)` int64. If `exact` is False, they are the ids of the text's head.
        exact: whether `ids` are the ids of the whole text. False if the text was so long that
            only its head was tokenised.
    """

    ids: TokenIds
    exact: bool = True

    @property
    def n_tokens(self) -> int:
        """Number of tokens in `ids`."""
        return len(self.ids)


class TextTokenizer:
    """A model's tokenizer, without truncation and padding.

    Args:
        path: `tokenizer.json`. Truncation and padding are switched off if the file has them on.
        max_tokens: the model's limit, special tokens included.

    Raises:
        ArtifactDamaged: the file holds no tokenizer.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:
            raise ArtifactDamaged(f"{path} is not a tokenizer.json: {exc}") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        self._head_chars = _CHARS_PER_TOKEN * (max_tokens + _HEAD_MARGIN)
        # The special tokens before and after every text, such as [CLS] and [SEP].
        probe = self._tokenizer.encode("a")
        inside = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        first, last = (inside[0], inside[-1]) if inside else (0, len(probe.ids))
        self._head, self._tail = probe.ids[:first], probe.ids[last + 1 :]

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each text, in order; an empty text gives its special tokens."""
        heads = [text[: self._head_chars] for text in texts]
        found = [_ids(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(heads)]
        return [
            self._encode_long(text, ids) if len(text) > self._head_chars else Encoded(ids)
            for text, ids in zip(texts, found, strict=True)
        ]

    def from_ids(self, ids: Sequence[int], prefix: str, own: Sequence[str]) -> TokenIds:
        """Token ids of a text that the caller sent as ids, with prefix and special tokens.

        If a token ends where the prefix ends, the result equals the ids of the same text as a
        string. White space at the end of the prefix is dropped, because it belongs to no token.

        Args:
            ids: ids of this model, each less than `vocab_size`, with or without special tokens at
                the two ends.
            prefix: prefix of the text.
            own: all prefixes of the model. A text that already begins with one of them gets no
                other one.
        """
        body = list(ids)
        if body[: len(self._head)] == self._head:
            body = body[len(self._head) :]
        if self._tail and body[-len(self._tail) :] == self._tail:
            body = body[: -len(self._tail)]
        if prefix and not any(_begins(body, self._pieces(known)) for known in own):
            body = self._pieces(prefix) + body
        return _ids([*self._head, *body, *self._tail])

    def _pieces(self, prefix: str) -> list[int]:
        """Token ids of a prefix, without special tokens."""
        return self._tokenizer.encode(prefix.rstrip(), add_special_tokens=False).ids

    def _encode_long(self, text: str, head: TokenIds) -> Encoded:
        """A very long text: its head if that is over the limit, else the whole text."""
        if len(head) >= self.max_tokens + _HEAD_MARGIN:
            return Encoded(head, exact=False)
        return Encoded(_ids(self._tokenizer.encode_batch_fast([text])[0].ids))

    def cut(self, ids: TokenIds) -> TokenIds:
        """The ids, cut to `max_tokens`; special tokens at the end are kept."""
        if len(ids) <= self.max_tokens:
            return ids
        n_tail = len(self._tail)
        return np.concatenate([ids[: self.max_tokens - n_tail], ids[len(ids) - n_tail :]])


def _begins(ids: list[int], beginning: list[int]) -> bool:
    return bool(beginning) and ids[: len(beginning)] == beginning


def _ids(ids: list[int]) -> TokenIds:
    return np.array(ids, dtype=np.int64)
