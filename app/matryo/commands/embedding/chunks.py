"""Windows of texts that have more tokens than one run may read.

A window has consecutive tokens of the whole text. The model reads them with the special tokens and
the prefix of every text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from matryo.commands.sinks.block import Span
from matryo.core.errors import SettingsInvalid
from matryo.engine import Engine, most_chars
from matryo.engine.postprocess import FloatArray, l2_normalize

Pooling = Literal["mean", "rows"]

# A text is tokenised in sections, each of which ends before white space: memory is bounded, and a
# section's tokens are those that the whole text has.
_SECTION_CHARACTERS = 1 << 15


@dataclass(frozen=True, slots=True)
class Chunking:
    """How long texts are split.

    Attributes:
        size: the most tokens of a window, special tokens and prefix included.
        overlap: tokens that two neighbouring windows share.
        pool: `mean` for one vector of all windows, `rows` for a row for each.
    """

    size: int
    overlap: int = 0
    pool: Pooling = "mean"

    def __str__(self) -> str:
        """What a message and a file's schema call the choice."""
        return f"{self.size}/{self.overlap}/{self.pool}"


@dataclass(frozen=True, slots=True)
class Window:
    """Some consecutive tokens of a text.

    Attributes:
        ids: of the tokens, without special tokens and prefix.
        span: where the tokens stand in the text.
    """

    ids: list[int]
    span: Span


class Chunker:
    """Splits texts for one model and one prefix.

    Args:
        engine: the model.
        prefix: of the texts.
        chunking: the user's choice.

    Raises:
        SettingsInvalid: windows larger than the model reads, or without room for a new token.
    """

    def __init__(self, engine: Engine, prefix: str, chunking: Chunking) -> None:
        most = engine.manifest.tokenizer.max_tokens
        if chunking.size > most:
            raise SettingsInvalid(
                f"--chunk {chunking.size}: {engine.manifest.id} reads at most {most} tokens; give "
                f"--chunk {most} or less"
            )
        n_around = engine.from_ids([], prefix).n_tokens
        self._n_tokens = chunking.size - n_around
        if self._n_tokens <= chunking.overlap:
            raise SettingsInvalid(
                f"--chunk {chunking.size} --overlap {chunking.overlap}: {n_around} tokens of a "
                "window are special tokens and prefix, which leaves no room for new tokens. Give "
                f"--chunk {n_around + chunking.overlap + 1} or more, or a smaller --overlap"
            )
        self._engine = engine
        self._prefix = prefix
        self._size = chunking.size
        self._step = self._n_tokens - chunking.overlap

    def split(self, texts: Sequence[str]) -> list[list[Window] | None]:
        """The windows of each text; None for a text that fits in one, which is left as it is."""
        encoded = self._engine.tokenize(texts, self._prefix)
        return [
            self._windows(text) if one.n_tokens > self._size or not one.exact else None
            for text, one in zip(texts, encoded, strict=True)
        ]

    def _windows(self, text: str) -> list[Window] | None:
        ids, starts, ends = array("q"), array("q"), array("q")
        for begin, section in self._sections(text):
            (tokens,) = self._engine.pieces([section], add_special_tokens=False)
            at = _characters(section)
            for token in tokens:
                span = token.span
                ids.append(token.id)
                starts.append(begin + at[span[0]] if span else ends[-1] if ends else begin)
                ends.append(begin + at[span[1]] if span else starts[-1])
        if len(ids) <= self._n_tokens:
            return None
        last = max(0, len(ids) - self._n_tokens)
        found: list[Window] = []
        for first in range(0, last + self._step, self._step):
            end = min(first + self._n_tokens, len(ids))
            span = Span(len(found), starts[first], ends[end - 1])
            found.append(Window(ids[first:end].tolist(), span))
        return found

    def _sections(self, text: str) -> Iterator[tuple[int, str]]:
        """Where each section begins, and its characters."""
        most = min(_SECTION_CHARACTERS, most_chars(self._size))
        begin = 0
        while begin < len(text):
            end = begin + most
            if end < len(text):
                # The last blank behind a word, or the section's end if it is one endless word.
                end = next((at for at in range(end, begin, -1) if text[at].isspace()), end)
            yield begin, text[begin:end]
            begin = end


def _characters(section: str) -> Sequence[int]:
    """For each offset of the UTF-8 bytes, the number of characters before it."""
    raw = np.frombuffer(section.encode("utf-8", "replace"), np.uint8)
    counts = np.cumsum((raw & 0xC0) != 0x80)  # noqa: PLR2004 - the first byte of a character
    return [0, *counts.tolist()]


def mean_of_windows(vectors: FloatArray, counts: Sequence[int]) -> FloatArray:
    """One unit vector for the windows of a text.

    Args:
        vectors: `(n, D)` float32, what the model has for each window before its last step,
            `l2_normalize`.
        counts: tokens of the text in each window, which are the weights.

    Returns:
        `(D,)` float32 of unit length: the weighted mean, and then the model's last step.
    """
    weights = np.asarray(counts, np.float32)[:, None]
    mean = np.add.reduce(vectors * weights, axis=0) / np.add.reduce(weights, axis=0)
    return l2_normalize(mean[None])[0]
