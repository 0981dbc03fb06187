"""One run of the service over all items of an input."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import click

from matryo.assembly.service import build_local_service
from matryo.commands.embedding.bar import Advance
from matryo.commands.embedding.chunks import Chunker, Chunking
from matryo.commands.embedding.distinct import Distinct, digest_of
from matryo.commands.embedding.window import Row, RowWindow
from matryo.commands.sinks.block import Block
from matryo.commands.sources.item import Item
from matryo.commands.sources.rows import NOTHING, Asked
from matryo.core.errors import ContextTooLong, InvalidRequest, RequestError
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.service import LocalService, Options, Texts
from matryo.service.choices import Choices, choose
from matryo.service.limits import WINDOW_TEXTS

Write = Callable[[Block, Sequence[Item]], None]
"""Takes the vectors of some rows, and the rows."""

_MOST_WINDOWS = 8  # that are held at a time


def embed_items(settings: Settings, items: Iterable[Item], write: Write, options: Options) -> str:
    """Embed every item, in order, from and to anything.

    Returns:
        The fingerprint of the vectors of items that ask for nothing.
    """
    with LocalService(lambda: build_local_service(settings, reporter=TerminalReporter())) as local:
        job = Job(local, options)
        job.embed(iter(items), write, lambda _rows, _tokens: None)
        return job.choices.fingerprint


class Job:
    """One run over all items.

    Args:
        local: the service.
        options: of rows that do not choose themselves.
        chunking: how long texts are split; None to refuse or cut them.

    Attributes:
        choices: what shapes the vectors of items that ask for nothing.
        n_unknown: texts with something that the model's vocabulary lacks.
        n_truncated: texts that were cut.

    Raises:
        RequestError: the model cannot give what `options` ask for.
        SettingsInvalid: windows that do not fit the model.
    """

    def __init__(
        self, local: LocalService, options: Options, chunking: Chunking | None = None
    ) -> None:
        self.n_unknown = self.n_truncated = 0
        self._local = local
        self._options = options
        self._chunking = chunking
        self._known: dict[Asked, Options] = {NOTHING: options}
        self._chunkers: dict[Options, Chunker] = {}
        self.choices = self._choose(options)
        for warning in self.choices.warnings:
            click.echo(f"warning: {warning}", err=True)
        if chunking:
            self._chunker(options, chunking)

    def options_of(self, item: Item) -> Options:
        """The options of a row: what the row asks for, else what the command line says.

        Raises:
            InvalidRequest: the model cannot give what the row asks for; the message names the row.
        """
        asked = item.asked
        if asked not in self._known:
            try:
                self._known[asked] = self._merge(asked)
            except RequestError as exc:
                raise InvalidRequest(f"{item.where}: {exc.message}") from exc
        return self._known[asked]

    def _merge(self, asked: Asked) -> Options:
        input_type = asked.input_type or self._options.input_type
        if asked.model and not asked.input_type:
            # The suffix of a row's model name is nearer to the row than the command line.
            _, suffix_type = self._local.service.directory.resolve(asked.model)
            input_type = None if suffix_type else input_type
        options = replace(
            self._options,
            model=asked.model,
            input_type=input_type,
            dimensions=asked.dimensions or self._options.dimensions,
            truncate=self._options.truncate if asked.truncate is None else asked.truncate,
        )
        width = self._choose(options).dimensions
        if width != self.choices.dimensions:
            raise InvalidRequest(
                f"'dimensions' is {width}, and the vectors of this output have "
                f"{self.choices.dimensions}; give --dimensions {width} for all rows"
            )
        return options

    def _choose(self, options: Options) -> Choices:
        service = self._local.service
        return choose(options, service.directory, service.defaults)

    def _chunker(self, options: Options, chunking: Chunking) -> Chunker:
        if options not in self._chunkers:
            choices = self._choose(options)
            prefix = choices.engine.manifest.prefix(choices.input_type)
            self._chunkers[options] = Chunker(choices.engine, prefix, chunking)
        return self._chunkers[options]

    # --- rows

    def _rows(
        self, items: Iterator[Item], first: int, distinct: Distinct | None
    ) -> Iterator[list[Row]]:
        """Rows that are read together; few enough to hold in memory."""
        at = first
        while read := list(islice(items, WINDOW_TEXTS)):
            rows = [Row(item, index, self.options_of(item)) for index, item in enumerate(read, at)]
            at += len(rows)
            for row in rows if distinct else ():
                assert distinct is not None, "it is checked above"
                row.digest = digest_of(row.item)
                row.is_copy = not distinct.is_new(row.digest)
            if self._chunking:
                self._split(rows, self._chunking)
            yield rows

    def _split(self, rows: list[Row], chunking: Chunking) -> None:
        """Give long texts their windows."""
        groups: dict[Options, list[Row]] = {}
        for row in rows:
            if not row.is_copy and not row.options.truncate:
                groups.setdefault(row.options, []).append(row)
        for options, members in groups.items():
            texts = [row.item.text for row in members]
            windows = self._chunker(options, chunking).split(texts)
            for row, found in zip(members, windows, strict=True):
                row.windows = found

    # --- vectors

    def embed(
        self,
        items: Iterator[Item],
        write: Write,
        advance: Advance,
        *,
        first: int = 0,
        distinct: Distinct | None = None,
    ) -> None:
        """Embed every item, and give `write` the rows in order.

        Args:
            items: the rows.
            write: takes the vectors.
            advance: takes the numbers of rows and of tokens that are done.
            first: index of the first row in the input.
            distinct: the texts of the whole input, of which equal ones are computed once; None to
                compute each.

        Raises:
            InvalidRequest: a row cannot be read or embedded; the message names the row.
        """
        windows: deque[RowWindow] = deque()  # read, and not written yet
        rows_read = self._rows(items, first, distinct)
        is_read = False

        def requests() -> Iterator[tuple[Options, Texts]]:
            nonlocal is_read
            for rows in rows_read:
                window = RowWindow(rows, self.choices.dimensions, self._chunking, distinct)
                windows.append(window)
                yield from window.requests()
                if len(windows) > _MOST_WINDOWS:
                    return  # these are copies, and wait for the windows before them
            is_read = True

        def write_done() -> None:
            while windows and windows[0].is_done:
                self._write(windows.popleft(), write, advance)

        try:
            while not is_read:
                for answer in self._local.embed_requests(requests()):
                    write_done()  # windows of copies, which need no answer
                    windows[0].take(answer)
                    advance(0, answer.n_tokens)
                    write_done()
                write_done()
        except ContextTooLong as exc:
            raise self._too_long(exc, windows) from exc

    def _write(self, window: RowWindow, write: Write, advance: Advance) -> None:
        self.n_unknown += window.n_unknown
        self.n_truncated += window.n_truncated
        write(window.block(), [row.item for row in window.rows])
        advance(len(window.rows), 0)

    def _too_long(self, exc: ContextTooLong, windows: Iterable[RowWindow]) -> InvalidRequest:
        rows = [row for window in windows for row in window.rows if row.index == exc.index]
        where = rows[0].item.where if rows else "a text"
        return InvalidRequest(
            f"{where} has {exc.n_tokens} tokens, and the model takes {exc.max_tokens}; give "
            f"--truncate to have such texts cut, or --chunk {exc.max_tokens} to have them split"
        )
