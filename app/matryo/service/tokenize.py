"""From texts to token ids: prefixes, the model's own tokenizer, and the limits of a request."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

from matryo.core.errors import ContextTooLong
from matryo.engine import Encoded, Side, TokenIds, most_chars
from matryo.scheduler import ANYONE, Tenant
from matryo.service.choices import Choices
from matryo.service.limits import (
    INLINE_CHARACTERS,
    INLINE_TEXTS,
    PIECE_CHARACTERS,
    PIECE_TEXTS,
    RequestLimits,
)
from matryo.service.request import Texts
from matryo.service.text_pool import TextPool
from matryo.service.token_arrays import TokenDecoder, check_own

_CHARS_PER_ID = 4  # of usual text
_ARRAY_BYTES = 112  # of an array, beside its values


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What the scheduler takes, and what the answer reports.

    Attributes:
        ids: of each text, within the model's limit.
        n_tokens: all of them, special tokens included.
        truncated: positions of the texts that were cut.
        unknown: positions of the texts with something that the vocabulary lacks.
    """

    ids: list[TokenIds]
    n_tokens: int
    truncated: tuple[int, ...]
    unknown: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes that the ids take."""
        return sum(_ARRAY_BYTES + ids.nbytes for ids in self.ids)


async def tokenize(
    texts: Texts,
    choices: Choices,
    *,
    truncate: bool,
    keep: Side = "start",
    pool: TextPool,
    limits: RequestLimits,
    decoder: TokenDecoder | None = None,
    patience_s: float | None = None,
    tenant: Tenant = ANYONE,
    piece_characters: int = PIECE_CHARACTERS,
) -> Tokenized:
    """Prefix and tokenise, and hold the result against the limits.

    All but a few short texts go to a thread: short texts cost less than the way there.

    Args:
        texts: strings, or arrays of ids.
        choices: the model and the input type.
        truncate: cut texts over the model's limit.
        keep: the end of a text that is kept where the text is cut.
        pool: threads to work on.
        limits: of the request.
        decoder: turns ids into strings; None if the ids are the served model's own.
        patience_s: seconds that the caller waits for an answer; None if unknown.
        tenant: whose texts they are.
        piece_characters: that are tokenised in one go; a longer text is a piece by itself.

    Raises:
        InvalidRequest: an id is outside the vocabulary.
        ContextTooLong: a text is over the model's limit and may not be cut.
        TooManyTokens: the texts are over the request's limit together.
        Overloaded: the texts would have to wait too long.
    """
    keep = keep if truncate else "start"
    work = _Work(texts, choices, None if texts.own_ids else decoder, keep)
    found = _Found(texts, choices, limits, truncate=truncate, keep=keep)
    if work.is_small():
        if texts.token_arrays:
            work.check()
        found.add(work.encode(0, len(texts)))
        return found.tokenized()
    with pool.admit(work.n_chars(0, len(texts)), patience_s, tenant) as job:
        if texts.token_arrays:
            await job.run(work.check)
        start = 0
        while start < len(texts):
            end = work.end_of_piece(start, piece_characters)
            is_long = work.n_chars(start, end) > PIECE_CHARACTERS
            encodings = await job.run(partial(work.encode, start, end), is_long=is_long)
            end = start + len(encodings)
            found.add(encodings)
            job.advance(work.n_chars(start, end))
            start = end
    return found.tokenized()


class _Work:
    """The texts of a request, and what threads do with them."""

    def __init__(
        self, texts: Texts, choices: Choices, decoder: TokenDecoder | None, keep: Side
    ) -> None:
        manifest = choices.engine.manifest
        self._texts = texts
        self._engine = choices.engine
        self._decoder = decoder
        self._keep: Side = keep
        self._prefix = manifest.prefix(choices.input_type)
        self._most_chars = most_chars(manifest.tokenizer.max_tokens)
        per_item = 1 if texts.strings else _CHARS_PER_ID
        self._n_chars = [
            min(per_item * len(text), self._most_chars)
            for text in texts.strings or texts.token_arrays
        ]

    def is_small(self) -> bool:
        """Whether the texts are so few and so short that no thread is needed."""
        n_items = sum(map(len, self._texts.strings or self._texts.token_arrays))
        if len(self._texts) > INLINE_TEXTS or n_items > INLINE_CHARACTERS:
            return False
        if not self._decoder or not self._texts.token_arrays:
            return True
        # One id may stand for 128 characters.
        decoder = self._decoder
        return decoder.loaded and (
            sum(map(decoder.count_bytes, self._texts.token_arrays)) <= INLINE_CHARACTERS
        )

    def n_chars(self, start: int, end: int) -> int:
        """Characters that are read of some of the texts; estimated if the texts are ids."""
        return sum(self._n_chars[start:end])

    def end_of_piece(self, start: int, most_chars: int) -> int:
        """The index behind the last text of the piece that begins with text `start`."""
        most = min(len(self._n_chars), start + PIECE_TEXTS)
        end, n_chars = start + 1, self._n_chars[start]
        while end < most and n_chars + self._n_chars[end] <= most_chars:
            n_chars += self._n_chars[end]
            end += 1
        return end

    def check(self) -> None:
        """Hold every id against the vocabulary."""
        if self._decoder:
            self._decoder.check(self._texts)
        else:
            check_own(self._texts, self._engine.vocab_size, self._engine.manifest.id)

    def encode(self, start: int, end: int) -> list[Encoded]:
        """Ids of some of the texts; of fewer texts than asked for, if their strings are long."""
        if self._texts.strings:
            strings = self._texts.strings[start:end]
            return self._engine.tokenize(strings, self._prefix, self._keep)
        arrays = self._texts.token_arrays[start:end]
        if not self._decoder:
            return [self._engine.from_ids(ids, self._prefix) for ids in arrays]
        decoded: list[str] = []
        n_chars = 0
        for ids in arrays:
            most = self._most_chars if self._keep == "start" else sys.maxsize
            decoded.append(self._decoder.decode(ids, most))
            n_chars += len(decoded[-1])
            if n_chars > PIECE_CHARACTERS:
                break
        return self._engine.tokenize(decoded, self._prefix, self._keep)


class _Found:
    """The ids that were found so far, held against the limits."""

    def __init__(
        self,
        texts: Texts,
        choices: Choices,
        limits: RequestLimits,
        *,
        truncate: bool,
        keep: Side,
    ) -> None:
        self._texts = texts
        self._engine = choices.engine
        self._limits = limits
        self._truncate = truncate
        self._keep: Side = keep
        self._ids: list[TokenIds] = []
        self._truncated: list[int] = []
        self._unknown: list[int] = []
        self._n_tokens = 0

    def add(self, encodings: list[Encoded]) -> None:
        """Take the ids of the next texts."""
        unknown_id = self._engine.unknown_id
        for encoded in encodings:
            ids = self._cut(encoded, len(self._ids))
            if encoded.n_dropped or (unknown_id is not None and unknown_id in ids.tolist()):
                self._unknown.append(self._texts.position(len(self._ids)) or 0)
            self._ids.append(ids)
            self._n_tokens += len(ids)
        self._limits.check_tokens(self._n_tokens, exact=len(self._ids) == len(self._texts))

    def _cut(self, encoded: Encoded, index: int) -> TokenIds:
        most = self._engine.manifest.tokenizer.max_tokens
        if encoded.n_tokens <= most and encoded.exact:
            return encoded.ids
        if not self._truncate:
            raise ContextTooLong(
                index=self._texts.position(index),
                n_tokens=encoded.n_tokens,
                max_tokens=most,
                exact=encoded.exact,
                max_chars=most_chars(most),
            )
        self._truncated.append(self._texts.position(index) or 0)
        return self._engine.cut(encoded.ids, self._keep)

    def tokenized(self) -> Tokenized:
        """All ids; known once every text was added."""
        return Tokenized(self._ids, self._n_tokens, tuple(self._truncated), tuple(self._unknown))
