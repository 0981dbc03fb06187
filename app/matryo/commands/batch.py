"""`matryo batch`: the lines of OpenAI's Batch API, without a server."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import click

from matryo.assembly.models import ready_engines
from matryo.assembly.service import build_service
from matryo.batch.lines import Checked, LineLimits, RawLine, check_lines, line_limits, split_lines
from matryo.batch.objects import WindowResult
from matryo.batch.windows import answer_window, read_windows, window_limits
from matryo.catalog.catalog import open_catalog
from matryo.catalog.names import look_up
from matryo.commands.batch_files import Done, Results, check_files, open_results
from matryo.core.errors import InvalidRequest
from matryo.core.fixed import fixed
from matryo.core.progress import SILENT, Reporter, TerminalReporter
from matryo.core.settings import Settings
from matryo.http.openai.lines import BatchLines
from matryo.service import OPEN, LocalService, Service
from matryo.store.files import temporary_directory

ENDPOINT = "/v1/embeddings"

_AHEAD = 3  # windows: one is written, one computed, one parsed and tokenised
_CHUNK = 1 << 20
_SHOWN_ERRORS = 20


def run(
    settings: Settings, source: Path, output: Path, errors: Path | None, *, restart: bool = False
) -> bool:
    """Answer every line of a file; goes on where an earlier run of the same command ended.

    Args:
        settings: as for a server.
        source: the input; `-` is standard input.
        output: for lines that were completed; `-` is standard output.
        errors: for lines that failed; None for `output`.
        restart: drop what an earlier run has done.

    Returns:
        Whether every line was completed.

    Raises:
        InvalidRequest: the input cannot be read, or is not what the Batch API takes.
        SettingsInvalid: a file cannot be written, or has the progress of another input.
        SetupError: the model cannot be made ready.
    """
    limits = line_limits(None, settings.max_body_bytes)
    with _open_source(source) as file:
        check_files(_stat(file), output, errors)
        checked = _checked(file, limits, source)
        settings = _with_model(settings, checked.model)
        service = build_service(settings, ready_engines(settings, reporter=TerminalReporter()))
        service.directory.resolve(checked.model, param="body.model")
        name = _name(checked, service, settings)
        with (
            open_results(output, errors, name, restart=restart) as results,
            LocalService(lambda: service) as local,
        ):
            on_screen = str(output) == "-" and sys.stdout.isatty()
            reporter = SILENT if on_screen else TerminalReporter()
            _Job(local, settings, limits).answer(file, checked, results, reporter)
    _say(results.done, errors, output)
    return not results.done.n_failed


@contextmanager
def _open_source(source: Path) -> Generator[BinaryIO, None, None]:
    """The input, from its beginning; a pipe is copied, because the input is read twice."""
    if str(source) == "-" and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the shell
        raise InvalidRequest("standard input is closed; name a file")
    with ExitStack() as stack:
        file: BinaryIO = sys.stdin.buffer
        if str(source) != "-":
            file = stack.enter_context(source.open("rb"))
        if not file.seekable():
            copy = stack.enter_context(TemporaryFile(dir=temporary_directory()))
            shutil.copyfileobj(file, copy, _CHUNK)
            file = copy
        yield file


def _stat(file: BinaryIO) -> os.stat_result | None:
    try:
        return os.fstat(file.fileno())
    except OSError:  # a stand-in without a descriptor
        return None


def _chunks(file: BinaryIO, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from `start` on."""
    file.seek(start)
    while chunk := file.read(_CHUNK):
        yield chunk


def _checked(file: BinaryIO, limits: LineLimits, source: Path) -> Checked:
    """What the input says.

    Raises:
        InvalidRequest: some lines are wrong; each of them was reported.
    """
    size = file.seek(0, os.SEEK_END)

    def lines() -> Iterator[RawLine]:
        with TerminalReporter().bar("checking", size) as advance:
            for line in split_lines(_chunks(file), limits.max_line_bytes):
                yield line
                advance(line.n_bytes)

    checked = check_lines(lines(), ENDPOINT, limits)
    if not (errors := checked.errors):
        return checked
    for error in errors[:_SHOWN_ERRORS]:
        where = "" if error.line is None else f"line {error.line}: "
        click.echo(f"{where}{error.message} ({error.code})", err=True)
    if (n_more := len(errors) - _SHOWN_ERRORS) > 0:
        click.echo(f"and {n_more} more", err=True)
    raise InvalidRequest(f"{source}: not an input of the Batch API. Nothing was embedded")


def _with_model(settings: Settings, model: str | None) -> Settings:
    """The settings with the model that the lines name, unless an operator has chosen models."""
    chosen = fixed().where or "model" in settings.model_fields_set
    if model is None or chosen or look_up(model, settings.alias_map):
        return settings
    known = open_catalog(settings)
    found = known.find(model) or known.find(model.rpartition("-")[0])
    return settings.model_copy(update={"model": (found,)}) if found else settings


class _Job:
    """One run over the lines of an input."""

    def __init__(self, local: LocalService, settings: Settings, limits: LineLimits) -> None:
        service = local.service
        self._local = local
        self._door = BatchLines(service, settings.max_body_bytes, settings.unknown_fields)
        self._limits = limits
        self._window = window_limits(service.directory.largest, service.limits.max_texts)

    def answer(
        self, file: BinaryIO, checked: Checked, results: Results, reporter: Reporter
    ) -> None:
        """Answer and write every line that was not answered before."""
        done, name = results.done, checked.sha256
        n_before = done.n_completed + done.n_failed
        if n_before:
            click.echo(f"going on behind {n_before} lines that an earlier run answered", err=True)
        chunks = _chunks(file, done.n_bytes)
        lines = split_lines(chunks, self._limits.max_line_bytes, done.n_lines)
        under_way: deque[Future[WindowResult]] = deque()
        with reporter.bar("embedding", checked.n_lines, "line", done=n_before) as advance:

            def commit() -> None:
                result = under_way.popleft().result()
                results.commit(result)
                advance(result.n_completed + result.n_failed)

            try:
                for window in read_windows(lines, ENDPOINT, self._window):
                    work = partial(answer_window, window, self._door, OPEN, name)
                    under_way.append(self._local.submit(work))
                    if len(under_way) >= _AHEAD:
                        commit()
                while under_way:
                    commit()
            finally:
                for future in under_way:
                    future.cancel()


def _name(checked: Checked, service: Service, settings: Settings) -> str:
    """Names the input and all else that shapes its results."""
    facts = [
        checked.sha256,
        *(engine.fingerprint for engine in service.directory.engines),
        repr(service.defaults),
        repr(service.limits),
        settings.unknown_fields,
        settings.token_input,
        str(settings.max_body_bytes),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _say(done: Done, errors: Path | None, output: Path) -> None:
    """Report what a run has given."""
    n_lines = done.n_completed + done.n_failed
    click.echo(
        f"{done.n_completed:,} of {n_lines:,} lines completed, {done.n_tokens:,} tokens", err=True
    )
    if done.n_failed:
        click.echo(f"{done.n_failed:,} lines failed: see {errors or output}", err=True)
