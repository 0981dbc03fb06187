"""Writes an output aside, so that a kill at any moment loses and repeats no row."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, Protocol

import click

from matryo.commands.remote import Remote
from matryo.commands.sinks.block import Block, Head
from matryo.commands.sinks.jsonl import JsonLines
from matryo.commands.sinks.output import SINKS, Output
from matryo.commands.sinks.parquet import Parquet
from matryo.commands.sinks.progress import Progress, Work, load_progress, save_progress
from matryo.core.errors import SettingsInvalid
from matryo.store.files import publish_file


class Writer(Protocol):
    """Takes the vectors of one block after another.

    Attributes:
        done: what an earlier run has done.
        n_vectors: in the output.
    """

    done: Progress
    n_vectors: int

    def write(self, block: Block) -> None:
        """Append the rows of a block."""
        ...

    def commit(self, progress: Progress) -> None:
        """Have the disk hold every row so far, and note that, with counts of the output."""
        ...

    def finish(self) -> None:
        """Make the output whole, and give it its name."""
        ...


class _Standard:
    """Standard output, which cannot be resumed."""

    def __init__(self, head: Head) -> None:
        self.done = Progress()
        self.n_vectors = 0
        self._sink = JsonLines(sys.stdout.buffer, head)

    def write(self, block: Block) -> None:
        self._sink.write(block)
        self.n_vectors += len(block.items)

    def commit(self, progress: Progress) -> None:
        pass

    def finish(self) -> None:
        sys.stdout.buffer.flush()


class _Staged:
    """A file that is written aside."""

    def __init__(
        self, output: Output, file: BinaryIO, head: Head, work: Work, done: Progress
    ) -> None:
        self.done = done
        self.n_vectors = done.vectors
        self._output = output
        self._file = file
        self._work = work
        file.truncate(done.n_bytes)
        file.seek(done.n_bytes)
        self._sink = SINKS[output.suffix](file, head)

    def write(self, block: Block) -> None:
        self._sink.write(block)
        self.n_vectors += len(block.items)

    def commit(self, progress: Progress) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        progress = replace(progress, vectors=self.n_vectors, n_bytes=self._file.tell())
        save_progress(self._output.progress, self._work, progress)

    def finish(self) -> None:
        output = self._output
        if isinstance(self._sink, Parquet):
            with output.whole.open("wb") as whole:
                self._sink.finish(self.n_vectors, whole)
            publish_file(output.whole, output.final)
        else:
            self._sink.finish(self.n_vectors, None)
            self._file.flush()
            publish_file(output.part, output.final)
        deliver(output)


def deliver(output: Output) -> None:
    """Upload a complete file, if it belongs behind a URL, and remove what is beside it.

    Raises:
        SettingsInvalid: the upload failed.
    """
    if output.url:
        Remote(output.url).upload(output.final)
    # The progress goes after the part, and before the copy of what was uploaded: a run that is
    # killed here knows that no row is left to do.
    for path in output.temporary:
        if path != output.progress:
            path.unlink(missing_ok=True)
    output.progress.unlink(missing_ok=True)
    if output.url:
        output.final.unlink()


def remove_temporary(output: Output) -> None:
    """Remove the files of an unfinished output; the progress, which counts others, goes first."""
    output.progress.unlink(missing_ok=True)
    for path in output.temporary:
        path.unlink(missing_ok=True)


def finished(output: Output | None, work: Work) -> bool:
    """Whether an earlier run of this work was killed after its last step but one."""
    if output is None or not (done := load_progress(output.progress, work)):
        return False
    return done.is_last and not output.part.exists() and output.final.exists()


@contextmanager
def open_writer(
    output: Output | None, head: Head, work: Work, *, resume: bool
) -> Generator[Writer, None, None]:
    """A writer for an output; a file gets its name only when it is complete.

    Args:
        output: from `check_output`; None for standard output.
        head: what is true of all vectors.
        work: what this run does.
        resume: go on where a run of the same work was cut off, and leave behind what the next run
            needs if this one is cut off.

    Raises:
        BrokenPipeError: the reader of standard output is gone.
        SettingsInvalid: the output cannot be written, for instance because a disk is full; or the
            run to resume did other work.
    """
    if output is None:
        try:
            yield _Standard(head)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise SettingsInvalid(f"standard output: {exc.strerror or exc}") from exc
        return
    try:
        descriptor = os.open(output.part, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            _lock(file, output)
            try:
                done = _begin(output, file, work, resume=resume)
                yield _Staged(output, file, head, work, done)
            except BaseException:
                if not resume:
                    remove_temporary(output)
                raise
    except OSError as exc:
        raise SettingsInvalid(f"--output {output.name}: {exc.strerror or exc}") from exc


def _begin(output: Output, file: BinaryIO, work: Work, *, resume: bool) -> Progress:
    """What an earlier run has done; without `resume`, what it left is dropped."""
    done = load_progress(output.progress, work) if resume else None
    if done is None:
        for path in output.temporary:
            if path != output.part:
                path.unlink(missing_ok=True)
        return Progress()
    if os.fstat(file.fileno()).st_size < done.n_bytes:
        raise SettingsInvalid(
            f"--resume: {output.part} is shorter than {output.progress} says. Leave --resume out "
            "to begin anew"
        )
    click.echo(f"going on after row {done.rows:,}", err=True)
    return done


def _lock(file: BinaryIO, output: Output) -> None:
    """Refuse an output that another process writes."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise SettingsInvalid(
            f"--output {output.name}: another process writes it; wait for its end, or give "
            "another name"
        ) from exc
