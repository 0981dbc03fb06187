"""A `tokenizer.json` as a build looks at it: its tokens, their ids, and the ids of a text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import normalizers as _normalizers

from matryo.build.charsmap import check_charsmaps
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import refusing, silent
from matryo.engine.tokenizer import load_tokenizer, remove_special_tokens

normalizers = cast("Any", _normalizers)  # the package's stubs lack most constructors


def write_lowercasing(path: Path, into: Path) -> Path:
    """Write a tokenizer that puts a text in lower case before it does all that another one does.

    Args:
        path: `tokenizer.json` of the other one.
        into: folder of the new `tokenizer.json`.

    Raises:
        CheckpointMismatch: the file is no tokenizer.

    Source: sentence-transformers, `base/modules/transformer.py`, `do_lower_case`.
    """

    def odd(reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(
            f"{path}: no step that puts texts in lower case can be put before it: {reason}. Take "
            "tokenizer.lowercase out of model.toml."
        )

    tokenizer: Any = load_tokenizer(path, odd)
    with refusing(odd), silent():
        steps = [normalizers.Lowercase()]
        if tokenizer.normalizer is not None:
            steps.append(tokenizer.normalizer)
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.save(str(into / path.name))
    return into / path.name


class TokenizerFile:
    """A tokenizer without truncation and padding.

    Args:
        path: `tokenizer.json`.
        add_special_tokens: whether a text gets the special tokens of the file.

    Attributes:
        vocabulary: id of each token, added tokens included.
        added: tokens that were added to the vocabulary of the model.
        pad_token: the token that the file pads with; None if the file does not pad.

    Raises:
        CheckpointMismatch: the file is no tokenizer.
    """

    def __init__(self, path: Path, *, add_special_tokens: bool = True) -> None:
        self.path = path
        with silent():
            self._tokenizer: Any = load_tokenizer(path, self._odd)
        with refusing(self._odd):
            if self._tokenizer.normalizer is not None:
                check_charsmaps(self._tokenizer.normalizer.__getstate__())
            self.vocabulary = cast("dict[str, int]", self._tokenizer.get_vocab())
            own = cast("dict[str, int]", self._tokenizer.get_vocab(with_added_tokens=False))
            self.added = frozenset(self.vocabulary.keys() - own.keys())
            padding = cast("dict[str, Any]", self._tokenizer.padding or {})
            self.pad_token = cast("str | None", padding.get("pad_token"))
            # A file may ask for padding to any length, and for a stride that the library refuses.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            if not add_special_tokens:
                remove_special_tokens(self._tokenizer)

    def encode(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """Token ids of each text, with the special tokens, cut to `most` tokens.

        Raises:
            CheckpointMismatch: the tokenizer cannot encode a text.
        """
        with refusing(self._odd), silent():
            if most is None:
                self._tokenizer.no_truncation()
            else:
                self._tokenizer.enable_truncation(most)
            return [cast("list[int]", found.ids) for found in self._tokenizer.encode_batch(texts)]

    @functools.cached_property
    def last_id(self) -> int:
        """The largest id that the tokenizer gives; -1 if it has no token.

        The special tokens around a text have ids of their own, which may be in no vocabulary.

        Raises:
            CheckpointMismatch: the tokenizer cannot encode a text.
        """
        around = [index for ids in self.encode(("", "a")) for index in ids]
        return max([*self.vocabulary.values(), *around], default=-1)

    def _odd(self, reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(
            f"{self.path} is not a tokenizer: {reason}. Put the tokenizer.json of the model beside "
            "the weights."
        )
