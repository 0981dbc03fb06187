"""Texts to token ids, by the model's own `tokenizer.json` and nothing else.

The library releases the GIL and spreads a batch over threads. The service puts prefixes before the
texts and refuses texts over the limit; this module only cuts them.
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

# A text with more than this many characters for each token of the limit is tokenised up to here
# first. English has about 4 characters a token, and tokenising 16 MB takes seconds.
_CHARS_PER_TOKEN = 32
# The last tokens of such a head could be others if the text went on; this many are never used.
_HEAD_MARGIN = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised text, special tokens included.

    Attributes:
        ids: `(n_tokens,)` int64; only the text's beginning where `exact` is False.
        exact: whether `ids` are those of the whole text. False if the text was so long that its
            end was not tokenised.
    """

    ids: TokenIds
    exact: bool = True

    @property
    def n_tokens(self) -> int:
        """Tokens in `ids`."""
        return len(self.ids)


class TextTokenizer:
    """A model's tokenizer, uncut and unpadded.

    Args:
        path: `tokenizer.json`. Truncation and padding that the file asks for are switched off.
        max_tokens: the model's limit, special tokens included.

    Raises:
        ArtifactDamaged: the file holds no tokenizer.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:
            raise ArtifactDamaged(f"{path} is no tokenizer.json: {exc}") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        self._head_chars = _CHARS_PER_TOKEN * (max_tokens + _HEAD_MARGIN)
        # Cutting a text keeps the special tokens at its end, such as [SEP] or </s>.
        probe = self._tokenizer.encode("a")
        inside = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        first, last = (inside[0], inside[-1]) if inside else (0, len(probe.ids))
        self._head, self._tail = probe.ids[:first], probe.ids[last + 1 :]

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
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
        """Token ids of a text that comes as ids, with its prefix and special tokens.

        The result equals the ids of the same text as a string if a token ends where the prefix
        ends. White space at the end of the prefix is left out, because it belongs to no token.

        Args:
            ids: each less than `vocab_size`, with or without special tokens at both ends.
            prefix: put before the text.
            own: prefixes of the model; a text that begins with one of them gets no other.
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
        return self._tokenizer.encode(prefix.rstrip(), add_special_tokens=False).ids

    def _encode_long(self, text: str, head: TokenIds) -> Encoded:
        if len(head) >= self.max_tokens + _HEAD_MARGIN:
            return Encoded(head, exact=False)
        return Encoded(_ids(self._tokenizer.encode_batch_fast([text])[0].ids))

    def cut(self, ids: TokenIds) -> TokenIds:
        """The ids cut to `max_tokens`; special tokens at the end are kept."""
        if len(ids) <= self.max_tokens:
            return ids
        n_tail = len(self._tail)
        return np.concatenate([ids[: self.max_tokens - n_tail], ids[len(ids) - n_tail :]])


def _begins(ids: list[int], beginning: list[int]) -> bool:
    return bool(beginning) and ids[: len(beginning)] == beginning


def _ids(ids: list[int]) -> TokenIds:
    return np.array(ids, dtype=np.int64)
