"""Texts to token ids, by the model's own `tokenizer.json` and nothing else.

The library releases the GIL and spreads a batch over threads. Not covered: prefixes (the
API puts them before the text) and limits (the API refuses; here is only the cutting).
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

# A text with this many characters for each token of the limit is first judged by its head:
# English has about 4, and tokenising 16 MB only to refuse it takes seconds.
_CHARS_PER_TOKEN = 32
# Tokens at the cut end of a head that the rest of the text could still change.
_HEAD_MARGIN = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised text, special tokens included.

    Attributes:
        ids: `(n_tokens,)` int64; only the beginning where `exact` is false.
        exact: False if the text was so long that counting stopped early.
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
        path: `tokenizer.json`; its own truncation and padding are switched off.
        max_tokens: the model's limit, special tokens included.

    Raises:
        ArtifactDamaged: the file is no tokenizer.
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
        # Special tokens at the end stay when a text is cut: [SEP], </s>.
        probe = self._tokenizer.encode("a")
        inside = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        first, last = (inside[0], inside[-1]) if inside else (0, len(probe.ids))
        self._head, self._tail = probe.ids[:first], probe.ids[last + 1 :]

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenise, in order; a text of nothing gives its special tokens."""
        heads = [text[: self._head_chars] for text in texts]
        found = [_ids(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(heads)]
        return [
            self._judge(text, ids) if len(text) > self._head_chars else Encoded(ids)
            for text, ids in zip(texts, found, strict=True)
        ]

    def from_ids(self, ids: Sequence[int], prefix: str, own: Sequence[str]) -> TokenIds:
        """A text that comes as ids, made whole: prefix and special tokens are put around it.

        The same ids as of the text itself, wherever tokens end with the prefix: it is put
        there without the white space at its end, which belongs to no token.

        Args:
            ids: each within `vocab_size`; special tokens at both ends may be there or not.
            prefix: what stands before the text.
            own: prefixes of the model; a text that begins with one is left as it is.
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

    def _judge(self, text: str, head: TokenIds) -> Encoded:
        if len(head) >= self.max_tokens + _HEAD_MARGIN:
            return Encoded(head, exact=False)
        return Encoded(_ids(self._tokenizer.encode_batch_fast([text])[0].ids))

    def cut(self, ids: TokenIds) -> TokenIds:
        """The first `max_tokens` of a text; special tokens at its end are kept."""
        if len(ids) <= self.max_tokens:
            return ids
        n_tail = len(self._tail)
        return np.concatenate([ids[: self.max_tokens - n_tail], ids[len(ids) - n_tail :]])


def _begins(ids: list[int], beginning: list[int]) -> bool:
    return bool(beginning) and ids[: len(beginning)] == beginning


def _ids(ids: list[int]) -> TokenIds:
    return np.array(ids, dtype=np.int64)
