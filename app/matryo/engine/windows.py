"""Which token ids at one end of a text are known before the whole text is tokenised.

A tokenizer normalises a text, splits the text into words, and tokenises each word by itself. The
ids of a word are therefore final once the tokenizer has read past the word and past whatever its
rules look at behind the word. Tokenizers that split by other rules have to read the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from tokenizers import Tokenizer

# Most rules look a character or two past a word. So many words where a window ends inside the text
# are not used.
_SPARE_WORDS = 16
_BERT = ("BertNormalizer", "BertPreTokenizer")
_NORMALIZERS = frozenset(
    (
        *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt"),
        *("Precompiled", "Prepend", "Replace", "Sequence", "Strip", "StripAccents"),
    )
)
_PRE_TOKENIZERS = frozenset(
    (
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace"),
        *("Punctuation", "Sequence", "Split", "Whitespace", "WhitespaceSplit"),
    )
)
# What a regular expression may use to look at any distance. `(?!\S)`, which every byte-level
# tokenizer has, looks at one character.
_LOOKS_FAR = re.compile(r"\(\?[=!<]|\$|\\[zZG]")
_LOOKS_NEAR = r"(?!\S)"
_SPLIT_PROBE = "a b a"
_BLANK_AFTER_WORD = re.compile(r"(?<=\S)\s")


class Windows:
    """Judges the tokens of a window, which is one end of a longer text.

    Args:
        tokenizer: of the model.

    Attributes:
        useful: whether a window can have final tokens. False for a tokenizer that does not split
            at blanks, or whose rules may look at any distance.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        library: Any = tokenizer
        rules = [(library.normalizer, _NORMALIZERS), (library.pre_tokenizer, _PRE_TOKENIZERS)]
        states = [
            (cast("dict[str, Any]", json.loads(rule.__getstate__())), known)
            for rule, known in rules
            if rule is not None
        ]
        is_known = all(
            _is_near(state) and known.issuperset(_kinds(state)) for state, known in states
        )
        words = library.encode(_SPLIT_PROBE, add_special_tokens=False).word_ids
        self.useful = is_known and len(set(words)) == len(_SPLIT_PROBE.split())
        # BERT's tokenizers split at every ideograph and every sign, whatever is around.
        self._needs_blank = not all(state.get("type") in _BERT for state, _ in states)
        added = library.get_added_tokens_decoder().values()
        self._spare_chars = max((len(token.content) for token in added), default=0)

    def final_at_start(self, window: str, encoding: Any) -> int:  # noqa: ANN401 - the library's types are incomplete
        """Number of tokens at a window's start that the whole text has too.

        Args:
            window: the beginning of a text.
            encoding: the window's tokens, with words, offsets and special tokens.
        """
        words: list[int | None] = encoding.word_ids
        offsets: list[tuple[int, int]] = encoding.offsets
        known = [word for word in words if word is not None]
        most_word = known[-1] - _SPARE_WORDS if known else -1
        most_end = len(window) - self._spare_chars
        if self._needs_blank:
            most_end = min(most_end, _last_blank(window))
        for index in range(len(words) - 1, -1, -1):
            word = words[index]
            if word is not None and word <= most_word and offsets[index][1] <= most_end:
                return index + 1
        return 0

    def final_at_end(self, window: str, encoding: Any) -> int:  # noqa: ANN401 - the library's types are incomplete
        """Number of tokens at a window's end that the whole text has too.

        Args:
            window: the end of a text.
            encoding: the window's tokens, with words, offsets and special tokens.
        """
        words: list[int | None] = encoding.word_ids
        offsets: list[tuple[int, int]] = encoding.offsets
        least_start = self._spare_chars
        if self._needs_blank:
            blank = _BLANK_AFTER_WORD.search(window)
            least_start = max(least_start, blank.end() if blank else len(window))
        for index, word in enumerate(words):
            if word is not None and word >= _SPARE_WORDS and offsets[index][0] >= least_start:
                return len(words) - index
        return 0


def _last_blank(window: str) -> int:
    """Index of the last blank that follows a word; 0 without one."""
    for index in range(len(window) - 1, 0, -1):
        if window[index].isspace() and not window[index - 1].isspace():
            return index
    return 0


def _kinds(state: object) -> Iterator[str]:
    """Types of a rule and of the rules that the rule consists of."""
    match state:
        case dict():
            table = cast("dict[str, object]", state)
            if "type" in table:
                yield str(table["type"])
            for inner in table.values():
                yield from _kinds(inner)
        case list():
            for inner in cast("list[object]", state):
                yield from _kinds(inner)
        case _:
            return


def _is_near(state: object) -> bool:
    """Whether no regular expression of a rule looks at any distance."""
    match state:
        case {"Regex": str(pattern)}:
            return not _LOOKS_FAR.search(pattern.replace(_LOOKS_NEAR, ""))
        case dict():
            return all(map(_is_near, cast("dict[str, object]", state).values()))
        case list():
            return all(map(_is_near, cast("list[object]", state)))
        case _:
            return True
