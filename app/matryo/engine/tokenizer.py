"""Turns texts into token ids with the model's own `tokenizer.json`.

The library releases the GIL and spreads a batch over threads. The service chooses the prefix and
refuses texts over the limit; this module puts the prefix before a text that has none, and cuts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from matryo.core.errors import ArtifactDamaged, InferenceFailed, MatryoError
from matryo.core.untrusted import is_panic, read_bytes, reason_of, refusing
from matryo.engine.prefixes import Prefixes
from matryo.engine.windows import Windows
from matryo.store.limits import TOKENIZER_MAX_BYTES

TokenIds = NDArray[np.int64]
Side = Literal["start", "end"]
"""An end of a text."""

# Tokenising 16 MB takes seconds and 60 bytes of memory for each character. Of a text that is surely
# over the limit, the tokenizer therefore reads a window at one end, with this many characters for
# each token of the limit. English has about 4 characters a token.
_CHARS_PER_TOKEN = (6, 24)
# A window of blanks, or of one endless word, has too few tokens that are final. The tokenizer then
# reads the whole text, up to this many characters for each token of the limit.
_MOST_CHARS_PER_TOKEN = 128
_SPARE_TOKENS = 256  # counted in addition to the limit, because a prefix and blanks take some

# The library gives a batch of several texts to threads of its own, behind the batches of all other
# callers: eight words then wait 40 ms, where they cost 0.4 ms one by one on the caller's thread.
_FEW_TEXTS = 8


def most_chars(max_tokens: int) -> int:
    """Characters that are read of a text for a model with this limit, its prefix not counted."""
    return _MOST_CHARS_PER_TOKEN * (max_tokens + _SPARE_TOKENS)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text, with the special tokens that the model has.

    Attributes:
        ids: `(n_tokens,)` int64. If `exact` is False, they are the ids that the whole text has at
            one end. A text without special tokens may have no ids.
        unread: characters at the text's other end that have no ids here. A text with such
            characters is over the model's limit, however few `ids` there are.
        n_dropped: unknown tokens that were left out of `ids`.
    """

    ids: TokenIds
    unread: int = 0
    n_dropped: int = 0

    @property
    def exact(self) -> bool:
        """Whether `ids` are the ids of the whole text."""
        return not self.unread

    @property
    def n_tokens(self) -> int:
        """Number of tokens in `ids`."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text, and what it stands for.

    Attributes:
        id: of the token.
        text: the part of the text, or the name of a special token.
        special: whether the tokenizer put the token around the text.
        span: offsets of the part in the text's UTF-8 bytes, prefix included; None for a special
            token.
    """

    id: int
    text: str
    special: bool
    span: tuple[int, int] | None


class Pieces:
    """The tokens of a text; each is made when it is asked for, because a text may have many.

    Args:
        text: that was tokenised.
        encoding: the library's tokens of the text.
        dropped_id: of tokens that are left out; None if none are.
    """

    def __init__(self, text: str, encoding: Any, dropped_id: int | None = None) -> None:  # noqa: ANN401 - the library's types are incomplete
        self._text = text
        self._encoding = encoding
        self._dropped_id = dropped_id

    def __len__(self) -> int:
        """Number of tokens, and of tokens that are left out."""
        return len(self._encoding)

    def __iter__(self) -> Iterator[Token]:
        """The tokens in order."""
        text, encoding = self._text, self._encoding
        widths = (len(character.encode("utf-8", "replace")) for character in text)
        at = array("Q", itertools.accumulate(widths, initial=0))  # the library counts characters
        offsets: list[tuple[int, int]] = encoding.offsets
        for token_id, name, special, (start, end) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, offsets, strict=True
        ):
            if token_id == self._dropped_id:
                continue
            if special:
                yield Token(token_id, name, special=True, span=None)
            else:
                yield Token(token_id, text[start:end], special=False, span=(at[start], at[end]))


def load_tokenizer(path: Path, error: Callable[[str], MatryoError]) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, with the truncation and padding of the file.

    Args:
        path: the file.
        error: makes the error for a file that is too large or no tokenizer, from a reason.

    Raises:
        MatryoError: the error that `error` makes.
    """
    with refusing(error):
        return Tokenizer.from_buffer(read_bytes(path, TOKENIZER_MAX_BYTES))


class TextTokenizer:
    """A model's tokenizer, without truncation and padding.

    Args:
        path: `tokenizer.json`. Truncation and padding are switched off if the file has them on.
        max_tokens: the model's limit, special tokens included.
        prefixes: every prefix of the model; a text that begins with one of them gets no other.
        add_special_tokens: whether a text gets the special tokens of the file.
        drop_unknown: whether unknown tokens are left out.

    Raises:
        ArtifactDamaged: the file holds no tokenizer.
    """

    def __init__(
        self,
        path: Path,
        max_tokens: int,
        prefixes: Sequence[str] = (),
        *,
        add_special_tokens: bool = True,
        drop_unknown: bool = False,
    ) -> None:
        def damaged(reason: str) -> ArtifactDamaged:
            return ArtifactDamaged(
                f"{path} is not a tokenizer.json: {reason}. Build the model again: matryo build."
            )

        self._tokenizer = load_tokenizer(path, damaged)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if not add_special_tokens:
            remove_special_tokens(self._tokenizer)
        self.max_tokens = max_tokens
        self._windows = [n * (max_tokens + _SPARE_TOKENS) for n in _CHARS_PER_TOKEN]
        self._most_chars = most_chars(max_tokens)
        # The special tokens before and after every text, such as [CLS] and [SEP].
        with refusing(damaged):
            probe = self._tokenizer.encode("a")
        inside = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        first, last = (inside[0], inside[-1]) if inside else (0, len(probe.ids))
        self._head, self._tail = probe.ids[:first], probe.ids[last + 1 :]
        self._prefixes = Prefixes(self._tokenizer, prefixes)
        with refusing(damaged):
            self._judge = Windows(self._tokenizer)
        self.unknown_id = _unknown_id(self._tokenizer)
        self._dropped_id = _stated_unknown_id(self._tokenizer) if drop_unknown else None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], prefix: str = "", side: Side = "start") -> list[Encoded]:
        """Token ids of each text, in order; an empty text gives its prefix and special tokens.

        If the tokenizer adds no special tokens, or leaves unknown tokens out, a text may have no
        ids.

        Args:
            texts: the texts; of each, at most `most_chars(max_tokens)` characters are read.
            prefix: put before each text that does not begin with one of the model's prefixes.
            side: the end of a very long text that is read.

        Raises:
            InferenceFailed: the library failed; its panics are no `Exception`.
        """
        read = [text[: self._most_chars] for text in texts]
        with _failing():
            encoded = self._encode_prefixed(read, prefix)
            found = [
                replace(one, unread=one.unread + len(text) - len(part))
                for one, text, part in zip(encoded, texts, read, strict=True)
            ]
            if side == "end":
                found = [
                    one if one.exact else self._encode_end(text, prefix)
                    for one, text in zip(found, texts, strict=True)
                ]
        return [self._without_unknown(one) for one in found]

    def _encode_end(self, text: str, prefix: str) -> Encoded:
        """Token ids of the end of a text whose beginning was not read to its end."""
        for n_chars in self._useful_windows(len(text)):
            window = text[-n_chars:]
            ids = self._read(window, "end")
            if ids is not None:
                return Encoded(_ids(ids), unread=len(text) - n_chars)
        # The end has few tokens, and all of it is read: blanks, or one endless word.
        end = text[-self._most_chars :]
        for whole in (prefix + end, end):
            ids = self._tokenizer.encode_batch_fast([whole])[0].ids
            if not (prefix and self._is_doubled(ids, prefix)):
                break
        return Encoded(_ids(ids), unread=max(1, len(text) - len(end)))

    def pieces(
        self, texts: Sequence[str], prefix: str = "", *, add_special_tokens: bool = True
    ) -> list[Pieces]:
        """The tokens of each text with the strings that they stand for, in order; uncut.

        Args:
            texts: the texts, each with at most `most_chars(max_tokens)` characters.
            prefix: put before each text that does not begin with one of the model's prefixes.
            add_special_tokens: whether the special tokens around a text are among its tokens.

        Raises:
            InferenceFailed: the library failed; its panics are no `Exception`.
        """
        with _failing():
            whole = [prefix + text for text in texts]
            if prefix:
                pairs = zip(whole, texts, self._encode_all(whole), strict=True)
                whole = [
                    text if self._is_doubled(one.ids.tolist(), prefix) else both
                    for both, text, one in pairs
                ]
            return [
                Pieces(
                    text,
                    self._tokenizer.encode(text, add_special_tokens=add_special_tokens),
                    self._dropped_id,
                )
                for text in whole
            ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The string of token ids, each less than `vocab_size`.

        Args:
            ids: ids of this tokenizer.
            skip_special_tokens: whether special tokens are left out.

        Raises:
            InferenceFailed: the library failed; its panics are no `Exception`.
        """
        with _failing():
            return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _without_unknown(self, encoded: Encoded) -> Encoded:
        if self._dropped_id is None:
            return encoded
        ids = encoded.ids[encoded.ids != self._dropped_id]
        return replace(encoded, ids=ids, n_dropped=encoded.n_tokens - len(ids))

    def _encode_prefixed(self, texts: Sequence[str], prefix: str) -> list[Encoded]:
        if not prefix:
            return self._encode_all(texts)
        encoded = self._encode_all([prefix + text for text in texts])
        # Where the text's own tokens begin with a prefix, too, the text is tokenised alone.
        doubtful = [
            index for index, one in enumerate(encoded) if self._is_doubled(one.ids.tolist(), prefix)
        ]
        alone = self._encode_all([texts[index] for index in doubtful])
        for index, one in zip(doubtful, alone, strict=True):
            encoded[index] = one
        return encoded

    def _is_doubled(self, ids: list[int], prefix: str) -> bool:
        """Whether a prefix follows the prefix that was put before a text."""
        start = len(self._head) + len(self._prefixes.pieces(prefix))
        return self._prefixes.begins(ids[: len(ids) - len(self._tail)], start)

    def from_ids(self, ids: Sequence[int], prefix: str = "") -> TokenIds:
        """Token ids of a text that comes as ids, with its prefix and special tokens.

        If a token ends where the prefix ends, the result equals the ids of the same text as a
        string. White space at the end of the prefix is dropped, because it belongs to no token.

        Args:
            ids: each less than `vocab_size`, with or without special tokens at both ends.
            prefix: put before a text that does not begin with one of the model's prefixes.
        """
        body = list(ids)
        if body[: len(self._head)] == self._head:
            body = body[len(self._head) :]
        if self._tail and body[-len(self._tail) :] == self._tail:
            body = body[: -len(self._tail)]
        if prefix and not self._prefixes.begins(body):
            body = self._prefixes.pieces(prefix) + body
        whole = _ids([*self._head, *body, *self._tail])
        return self._without_unknown(Encoded(whole)).ids

    def _encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each text; of a text that is surely over the limit, those of its start."""
        found: list[Encoded | None] = [self._encode_start(text) for text in texts]
        rest = [text for text, one in zip(texts, found, strict=True) if one is None]
        whole = iter(self._encode_whole(rest))
        return [next(whole) if one is None else one for one in found]

    def _encode_whole(self, texts: Sequence[str]) -> list[Encoded]:
        step = 1 if len(texts) <= _FEW_TEXTS else len(texts)
        return [
            Encoded(_ids(encoding.ids))
            for start in range(0, len(texts), step)
            for encoding in self._tokenizer.encode_batch_fast(texts[start : start + step])
        ]

    def _encode_start(self, text: str) -> Encoded | None:
        """Token ids of a text's start; None if the text has to be read whole."""
        for n_chars in self._useful_windows(len(text)):
            ids = self._read(text[:n_chars], "start")
            if ids is not None:
                return Encoded(_ids(ids), unread=len(text) - n_chars)
        return None

    def _useful_windows(self, n_chars: int) -> list[int]:
        """Sizes of the windows to try on a text of `n_chars` characters, the smallest first."""
        if not self._judge.useful:
            return []
        return [size for size in self._windows if size < n_chars]

    def _read(self, window: str, side: Side) -> list[int] | None:
        """Ids at one end of a text that are those of the whole text, special tokens included.

        Args:
            window: the end of the text.
            side: which end.

        Returns:
            More ids than `max_tokens`; None if the window has fewer.
        """
        (encoding,) = self._tokenizer.encode_batch([window])
        ids = encoding.ids
        if side == "start":
            ids = [*ids[: self._judge.final_at_start(window, encoding)], *self._tail]
        else:
            n_final = self._judge.final_at_end(window, encoding)
            ids = [*self._head, *ids[len(ids) - n_final :]]
        n_known = len(ids) - (0 if self._dropped_id is None else ids.count(self._dropped_id))
        return ids if n_known > self.max_tokens else None

    def cut(self, ids: TokenIds, side: Side = "start") -> TokenIds:
        """The ids, cut to `max_tokens`; special tokens at both ends are kept.

        Args:
            ids: of a text.
            side: the end of the text whose tokens are kept. A text whose end is kept loses its
                prefix, as it does where the library cuts at the left.
        """
        if len(ids) <= self.max_tokens:
            return ids
        if side == "end":
            n_head = len(self._head)
            return np.concatenate([ids[:n_head], ids[len(ids) - self.max_tokens + n_head :]])
        n_tail = len(self._tail)
        return np.concatenate([ids[: self.max_tokens - n_tail], ids[len(ids) - n_tail :]])


@contextlib.contextmanager
def _failing() -> Generator[None, None, None]:
    """Turn a failure of the library into `InferenceFailed`."""
    try:
        yield
    except BaseException as exc:
        if not isinstance(exc, Exception) and not is_panic(exc):
            raise
        raise InferenceFailed(f"the tokenizer failed: {reason_of(exc)}") from exc


def remove_special_tokens(tokenizer: Tokenizer) -> None:
    """Make a tokenizer put no special tokens around a text."""
    # The post-processor does nothing else to the ids of a single text.
    cast("Any", tokenizer).post_processor = None


def _stated_unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer's file states for unknown pieces; None if it states none."""
    model = cast("Any", tokenizer).model
    if hasattr(model, "unk_token"):
        name = model.unk_token
        return tokenizer.token_to_id(name) if isinstance(name, str) else None
    # A unigram model has an id in place of a name, and the library does not give it.
    return cast("dict[str, Any]", json.loads(model.__getstate__())).get("unk_id")


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of every piece that the vocabulary lacks; None if the tokenizer can write anything."""
    name = getattr(cast("Any", tokenizer).model, "unk_token", None)
    # A unigram model does not say which of its tokens stands for unknown pieces.
    return tokenizer.token_to_id(name if isinstance(name, str) else "<unk>")


def _ids(ids: list[int]) -> TokenIds:
    return np.array(ids, dtype=np.int64)
