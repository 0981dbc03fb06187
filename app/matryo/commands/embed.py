"""`matryo embed`: the service on the texts of a file, without a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import click
import numpy as np

from matryo.assembly.service import build_local_service, operator_defaults
from matryo.commands.rows import NOTHING, Asked
from matryo.commands.texts import Format, Item, open_source
from matryo.commands.vectors import Writer, check_output, open_writer
from matryo.core.errors import ContextTooLong, InvalidRequest, RequestError
from matryo.core.fixed import fixed
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.service import Answer, LocalService, Options, Texts
from matryo.service.choices import Choices, choose
from matryo.service.limits import WINDOW_TEXTS


def run(
    settings: Settings, file: Path, output: Path | None, options: Options, form: Format | None
) -> None:
    """Embed every line of `file`, in order.

    A file is checked to its end before the model is loaded, a pipe for its first 512 lines.

    Args:
        settings: as for a server; the first model is the one.
        file: lines or JSON lines; `-` is standard input.
        output: `.jsonl`, `.npy` or `.parquet`; None writes JSON lines to standard output.
        options: input type, dimensions and truncation of rows that do not choose themselves.
        form: the format of `file`; None to go by its name, or by a pipe's content.

    Raises:
        InvalidRequest: a line that cannot be read or embedded; the message names the line.
        SettingsInvalid: an output that cannot be written, is the input, or is of another
            format; or Parquet without pyarrow.
        SetupError: the model cannot be made ready.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_source(file, form))
        check_output(output, source.stat)
        asked, items = source.read_ahead()
        # A bundle's own command line gives what its server gives.
        defaults = operator_defaults(settings) if fixed().where else None
        local = stack.enter_context(
            LocalService(lambda: build_local_service(settings, defaults=defaults))
        )
        job = _Job(local, options)
        for wish, line in asked.items():
            job.options_of(wish, line)
        writer = stack.enter_context(open_writer(output, job.choices.dimensions))
        job.embed(items, writer)
    if job.n_truncated:
        click.echo(f"{job.n_truncated} texts were cut to the model's limit", err=True)
    if job.n_unknown:
        click.echo(
            f"{job.n_unknown} texts have something that the model's vocabulary lacks", err=True
        )


def embed_items(settings: Settings, items: Iterable[Item], writer: Writer, options: Options) -> str:
    """Embed every item, in order; like `run`, from and to anything.

    Returns:
        The fingerprint of the vectors of items that ask for nothing.
    """
    with LocalService(lambda: build_local_service(settings)) as local:
        job = _Job(local, options)
        job.embed(iter(items), writer)
        return job.choices.fingerprint


class _Job:
    """One run over all items.

    Attributes:
        choices: what shapes the vectors of items that ask for nothing.
        n_unknown: texts with something that the model's vocabulary lacks.
        n_truncated: texts that were cut.
    """

    def __init__(self, local: LocalService, options: Options) -> None:
        self.n_unknown = self.n_truncated = 0
        self._local = local
        self._options = options
        self._known: dict[Asked, Options] = {NOTHING: options}
        self.choices = self._choose(options)
        for warning in self.choices.warnings:
            click.echo(f"warning: {warning}", err=True)

    def options_of(self, asked: Asked, line: int) -> Options:
        """The options of a row: what the row asks for, else what the command line says.

        Raises:
            InvalidRequest: the model cannot give what the row asks for; the message names `line`.
        """
        if asked not in self._known:
            try:
                self._known[asked] = self._merge(asked)
            except RequestError as exc:
                raise InvalidRequest(f"line {line}: {exc.message}") from exc
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

    def embed(self, items: Iterator[Item], writer: Writer) -> None:
        """Embed and write every item, in order."""
        windows: deque[_Window] = deque()  # read, and not written yet

        def requests() -> Iterator[tuple[Options, Texts]]:
            while read := list(islice(items, WINDOW_TEXTS)):
                window = _Window(read, [self.options_of(item.asked, item.line) for item in read])
                windows.append(window)
                yield from window.requests()

        try:
            with TerminalReporter().bar("embedding", unit="text") as advance:
                for answer in self._local.embed_requests(requests()):
                    self.n_unknown += len(answer.unknown)
                    self.n_truncated += len(answer.truncated)
                    if windows[0].take(answer):
                        window = windows.popleft()
                        writer.write(window.items, window.vectors)
                        advance(len(window.items))
        except ContextTooLong as exc:
            raise InvalidRequest(
                f"line {exc.index} has {exc.n_tokens} tokens, and the model takes "
                f"{exc.max_tokens}; give --truncate to have such texts cut"
            ) from exc


class _Window:
    """Items that were read together: one request for each of their options.

    Attributes:
        items: in order.
        vectors: `(len(items), D)`, in the order of the items, once every answer was taken.
    """

    def __init__(self, items: list[Item], options: list[Options]) -> None:
        self.items = items
        self._groups: dict[Options, list[int]] = {}
        for index, choice in enumerate(options):
            self._groups.setdefault(choice, []).append(index)
        self._waiting = deque(self._groups.values())
        self.vectors = np.empty((0, 0), np.float32)

    def requests(self) -> Iterator[tuple[Options, Texts]]:
        """The requests, in the order in which `take` expects their answers."""
        for options, indexes in self._groups.items():
            members = [self.items[index] for index in indexes]
            positions = [item.line for item in members]
            yield options, Texts([item.text for item in members], positions=positions)

    def take(self, answer: Answer) -> bool:
        """Put the next answer into its rows; True if that was the last one."""
        if len(self._groups) == 1:
            self.vectors = answer.vectors
            return True
        if not self.vectors.size:
            self.vectors = np.empty((len(self.items), answer.vectors.shape[1]), np.float32)
        self.vectors[self._waiting.popleft()] = answer.vectors
        return not self._waiting
