"""`matryo embed`: the service on the texts of a file, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import click

from matryo.assembly import build_local_service
from matryo.commands.texts import Item, open_lines, read_items
from matryo.commands.vectors import Writer, open_writer
from matryo.core.errors import ContextTooLong, InvalidRequest
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.service import LocalService, Options, Texts
from matryo.service.choices import Choices, choose
from matryo.service.limits import WINDOW_TEXTS


def run(settings: Settings, file: Path, output: Path | None, options: Options) -> None:
    """Embed every line of `file`, in order.

    Args:
        settings: as for a server; the first model is the one.
        file: lines or JSONL; `-` is standard input.
        output: `.jsonl`, `.npy` or `.parquet`; None writes JSON lines to standard output.
        options: input type, dimensions and truncation.

    Raises:
        InvalidRequest: a line that cannot be read or embedded; the message names the line.
        SettingsInvalid: an output of another format, or Parquet without pyarrow.
        SetupError: the model cannot be made ready.
    """
    with ExitStack() as stack:
        local = stack.enter_context(LocalService(lambda: build_local_service(settings)))
        choices = _choose(local, options)
        writer = stack.enter_context(open_writer(output, choices.dimensions))
        lines = stack.enter_context(open_lines(file))
        _embed_all(local, read_items(lines, str(file)), writer, options)


def embed_items(settings: Settings, items: Iterable[Item], writer: Writer, options: Options) -> str:
    """Embed every item, in order; like `run`, from and to anything.

    Returns:
        The fingerprint of the vectors.
    """
    with LocalService(lambda: build_local_service(settings)) as local:
        choices = _choose(local, options)
        _embed_all(local, iter(items), writer, options)
        return choices.fingerprint


def _choose(local: LocalService, options: Options) -> Choices:
    choices = choose(options, local.service.directory, local.service.defaults)
    for warning in choices.warnings:
        click.echo(f"warning: {warning}", err=True)
    return choices


def _embed_all(
    local: LocalService, items: Iterator[Item], writer: Writer, options: Options
) -> None:
    read: list[list[Item]] = []  # windows that were read and not written yet

    def windows() -> Iterator[Texts]:
        while window := list(islice(items, WINDOW_TEXTS)):
            read.append(window)
            yield Texts([item.text for item in window], positions=[item.line for item in window])

    try:
        with TerminalReporter().bar("embedding", unit="text") as advance:
            for answer in local.embed_windows(options, windows()):
                window = read.pop(0)
                writer.write(window, answer.vectors)
                advance(len(window))
    except ContextTooLong as exc:
        raise InvalidRequest(
            f"line {exc.index} has {exc.n_tokens} tokens, and the model takes {exc.max_tokens}; "
            "give --truncate to have such texts cut"
        ) from exc
