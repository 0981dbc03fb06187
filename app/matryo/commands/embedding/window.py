"""Rows that are read together, and their way from texts to vectors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from matryo.commands.embedding.chunks import Chunking, mean_of_windows
from matryo.commands.embedding.chunks import Window as TokenWindow
from matryo.commands.embedding.distinct import Distinct
from matryo.commands.sinks.block import Block, Span
from matryo.commands.sources.item import Item
from matryo.engine.postprocess import FloatArray
from matryo.service import Answer, Options, Texts
from matryo.service.limits import WINDOW_TEXTS


@dataclass(slots=True)
class Row:
    """One row of the input.

    Attributes:
        item: the row.
        index: of the row in the input, from 0.
        options: of its request.
        windows: of its text; None for a text that is left whole.
        digest: of its text, where equal texts are computed once.
        is_copy: whether the text's vectors are those of an earlier row.
    """

    item: Item
    index: int
    options: Options
    windows: list[TokenWindow] | None = None
    digest: bytes = b""
    is_copy: bool = False

    @property
    def n_vectors(self) -> int:
        """Vectors to compute."""
        return 0 if self.is_copy else len(self.windows) if self.windows else 1


@dataclass(slots=True)
class _Request:
    """The texts of one call of the service, or token windows of texts.

    Attributes:
        places: for each text, its vector's index among those of the window of rows.
    """

    options: Options
    texts: list[str] = field(default_factory=list[str])
    arrays: list[list[int]] = field(default_factory=list[list[int]])
    positions: list[int] = field(default_factory=list[int])
    places: list[int] = field(default_factory=list[int])

    def add(self, row: Row, place: int, window: TokenWindow | None) -> None:
        if window:
            self.arrays.append(window.ids)
        else:
            self.texts.append(row.item.text)
        self.positions.append(row.index)
        self.places.append(place)


class RowWindow:
    """Rows that were read together: some requests for each of their options.

    Args:
        rows: in order.
        dimensions: of the vectors.
        chunking: how long texts are split; None if they are not.
        distinct: the texts of the whole input; None where equal texts are computed again.

    Attributes:
        n_unknown: texts with something that the model's vocabulary lacks.
        n_truncated: texts that were cut.
    """

    def __init__(
        self,
        rows: list[Row],
        dimensions: int,
        chunking: Chunking | None,
        distinct: Distinct | None,
    ) -> None:
        self.rows = rows
        self.n_unknown = self.n_truncated = 0
        self._chunking = chunking
        self._distinct = distinct
        self._requests = _requests(rows, chunking)
        self._waiting = deque(self._requests)
        n_vectors = sum(row.n_vectors for row in rows)
        self._vectors = np.empty((n_vectors, dimensions), np.float32)

    @property
    def is_done(self) -> bool:
        """Whether every answer was taken."""
        return not self._waiting

    def requests(self) -> Iterator[tuple[Options, Texts]]:
        """The requests, in the order in which `take` expects their answers."""
        for one in self._requests:
            texts = Texts(one.texts, one.arrays, positions=one.positions, own_ids=bool(one.arrays))
            yield one.options, texts

    def take(self, answer: Answer) -> None:
        """Put the next answer where its vectors belong."""
        self.n_unknown += len(answer.unknown)
        self.n_truncated += len(answer.truncated)
        self._vectors[self._waiting.popleft().places] = answer.vectors

    def block(self) -> Block:
        """The rows with their vectors, once every answer was taken."""
        is_plain = self._distinct is None and all(row.windows is None for row in self.rows)
        has_spans = self._chunking is not None and self._chunking.pool == "rows"
        if is_plain and not has_spans:
            items = [row.item for row in self.rows]
            return Block(items, [row.index for row in self.rows], self._vectors)
        parts: list[FloatArray] = []
        spans: list[Span] = []
        owners: list[Row] = []
        at = 0
        for row in self.rows:
            computed = self._vectors[at : at + row.n_vectors]
            at += row.n_vectors
            vectors, places = self._of_row(row, computed)
            parts.append(vectors)
            spans += places
            owners += [row] * len(places)
        items, indexes = [row.item for row in owners], [row.index for row in owners]
        return Block(items, indexes, np.concatenate(parts), spans if has_spans else None)

    def _of_row(self, row: Row, computed: FloatArray) -> tuple[FloatArray, Sequence[Span]]:
        """The vectors of one row, and the span of each."""
        if row.is_copy:
            assert self._distinct is not None, "only equal texts are copies"
            return self._distinct.recall(row.digest)
        spans = [Span(0, 0, len(row.item.text))]
        if row.windows and self._chunking and self._chunking.pool == "mean":
            counts = [len(window.ids) for window in row.windows]
            computed = mean_of_windows(computed, counts)[None]
        elif row.windows:
            spans = [window.span for window in row.windows]
        if self._distinct:
            self._distinct.remember(row.digest, computed, spans)
        return computed, spans


def _requests(rows: Sequence[Row], chunking: Chunking | None) -> list[_Request]:
    """The requests of some rows; each has texts, or token windows, of equal options."""
    open_requests: dict[tuple[Options, bool], _Request] = {}
    found: list[_Request] = []
    place = 0
    for row in rows:
        options = row.options
        if row.windows and chunking and chunking.pool == "mean":
            options = replace(options, normalize=False)
        for window in row.windows or ([] if row.is_copy else [None]):
            key = (options, window is not None)
            request = open_requests.get(key)
            if request is None or len(request.places) >= WINDOW_TEXTS:
                request = open_requests[key] = _Request(options)
                found.append(request)
            request.add(row, place, window)
            place += 1
    return found
