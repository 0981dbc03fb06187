"""`matryo embed`: from the inputs of a command line to a file of vectors."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

import click

from matryo.assembly.service import build_local_service, local_defaults
from matryo.commands.embedding.bar import progress_bar
from matryo.commands.embedding.chunks import Chunking
from matryo.commands.embedding.distinct import Distinct, open_distinct
from matryo.commands.embedding.job import Job
from matryo.commands.sinks.block import Block, Dtype, Head
from matryo.commands.sinks.output import Output, check_output
from matryo.commands.sinks.progress import Progress, Work
from matryo.commands.sinks.staging import Writer, deliver, finished, open_writer
from matryo.commands.sources.inputs import Ahead, Digest, Inputs, open_inputs
from matryo.commands.sources.item import Item, Reading
from matryo.commands.sources.rows import KEYS
from matryo.core.errors import SettingsInvalid
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.service import EmbeddingType, LocalService, Options

_COMMIT_S = 1.0
_OWN_COLUMNS = ("index", *KEYS, "embedding")
_SPAN_COLUMNS = ("chunk", "start", "end")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for.

    Attributes:
        names: of the inputs: files, folders, globs, URLs; `-` is standard input.
        reading: how inputs are read.
        output: a file or a URL that ends in `.jsonl`, `.npy` or `.parquet`; None writes JSON
            lines to standard output.
        options: input type, dimensions and truncation of rows that do not choose themselves, and
            the fingerprint that all vectors must have.
        dtype: numbers of the output.
        dedupe: compute equal texts once.
        resume: go on where a run of the same work was cut off.
        chunking: how long texts are split; None to refuse or cut them.
    """

    names: Sequence[str]
    reading: Reading
    output: str | None
    options: Options
    dtype: Dtype = "float32"
    dedupe: bool = False
    resume: bool = False
    chunking: Chunking | None = None

    @property
    def embedding_type(self) -> EmbeddingType:
        """That the fingerprint of the output has."""
        return "int8" if self.dtype == "int8" else "float"


def run(settings: Settings, wish: Wish) -> None:
    """Embed every row of the inputs, in order.

    Files are checked to their end before the model is loaded; of a pipe or a URL, the first 512
    rows.

    Args:
        settings: as for a server; the first model is the one.
        wish: the command line.

    Raises:
        InvalidRequest: a row that cannot be read or embedded; the message names the row.
        SettingsInvalid: an output that cannot be written, is an input, or is of another format;
            flags that contradict one another; a missing package; or work that cannot be resumed.
        SetupError: the model cannot be made ready.
    """
    _check(wish)
    with ExitStack() as stack:
        inputs = open_inputs(wish.names, wish.reading)
        output = check_output(wish.output, settings.home, inputs.stats, inputs.urls)
        ahead = inputs.read_ahead()
        local = stack.enter_context(
            LocalService(
                lambda: build_local_service(
                    settings, defaults=local_defaults(settings), reporter=TerminalReporter()
                )
            )
        )
        job = Job(local, wish.options, wish.chunking, wish.embedding_type)
        for item in ahead.asked.values():
            job.options_of(item)
        facts = _facts(job, wish)
        work = _work(wish, facts, ahead)
        if wish.resume and output and finished(output, work):
            deliver(output)
            return
        head = _head(job, wish, inputs, facts)
        writer = stack.enter_context(open_writer(output, head, work, resume=wish.resume))
        _embed(job, wish, ahead, writer, output)
    if job.n_truncated:
        click.echo(f"{job.n_truncated} texts were cut to the model's limit", err=True)
    if job.n_unknown:
        click.echo(
            f"{job.n_unknown} texts have something that the model's vocabulary lacks", err=True
        )


def _check(wish: Wish) -> None:
    """Refuse flags that contradict one another."""
    chunking, keep = wish.chunking, wish.reading.keep
    is_npy = wish.output is not None and wish.output.lower().endswith(".npy")
    if wish.resume and wish.output is None:
        raise SettingsInvalid("--resume needs a file to go on with; give --output FILE")
    if chunking and wish.options.truncate:
        raise SettingsInvalid("--truncate cuts long texts, and --chunk splits them; give one")
    if is_npy and (keep or (chunking and chunking.pool == "rows")):
        flag = "--keep" if keep else "--pool rows"
        raise SettingsInvalid(
            f"{flag}: a .npy file has vectors and no columns; give an --output that ends in "
            ".jsonl or .parquet"
        )
    own = (*_OWN_COLUMNS, *(_SPAN_COLUMNS if chunking and chunking.pool == "rows" else ()))
    for name in keep:
        if name in own:
            raise SettingsInvalid(
                f"--keep {name}: the output has a column of this name; rename the input's, or "
                "leave the flag out"
            )


def _facts(job: Job, wish: Wish) -> dict[str, str]:
    """What shaped the vectors."""
    choices = job.choices
    return {
        "model": choices.engine.manifest.id,
        "fingerprint": replace(choices, embedding_type=wish.embedding_type).fingerprint,
        "input_type": choices.input_type,
        "dimensions": str(choices.dimensions),
        "dtype": wish.dtype,
    } | ({"chunk": str(wish.chunking)} if wish.chunking else {})


def _work(wish: Wish, facts: dict[str, str], ahead: Ahead) -> Work:
    """What two runs must have in common for one to go on with the other's output."""
    reading = wish.reading
    return Work(
        facts
        | {
            "--format": reading.form or "",
            "--column": reading.text or "",
            "--id-column": reading.key or "",
            "--keep": ", ".join(reading.keep),
            "--delimiter": reading.delimiter or "",
            "--truncate": "given" if wish.options.truncate else "",
            "--dedupe": "given" if wish.dedupe else "",
            "the input": ahead.identity,
        }
    )


def _head(job: Job, wish: Wish, inputs: Inputs, facts: dict[str, str]) -> Head:
    return Head(
        dimensions=job.choices.dimensions,
        dtype=wish.dtype,
        facts=facts,
        keep=wish.reading.keep,
        types=inputs.book.types if inputs.is_parquet else {},
        has_spans=wish.chunking is not None and wish.chunking.pool == "rows",
    )


def _embed(job: Job, wish: Wish, ahead: Ahead, writer: Writer, output: Output | None) -> None:
    """Embed what an earlier run has not done, and finish the output."""
    done = writer.done
    job.n_truncated, job.n_unknown = done.truncated, done.unknown
    with ExitStack() as stack:
        distinct: Distinct | None = None
        if wish.dedupe:
            path = output.texts if output else None
            width = job.choices.dimensions
            distinct = stack.enter_context(open_distinct(path, width, done.texts))
        keeper = _Keeper(job, writer, distinct)
        items = keeper.skip(ahead.items)
        keeper.commit()
        on_screen = output is None and sys.stdout.isatty()
        with progress_bar(ahead.n_rows, done.rows, is_hidden=on_screen) as advance:
            job.embed(items, keeper.write, advance, first=done.rows, distinct=distinct)
        keeper.commit(is_last=True)
    writer.finish()


class _Keeper:
    """Writes blocks, and notes how far the output is whole."""

    def __init__(self, job: Job, writer: Writer, distinct: Distinct | None) -> None:
        self._job = job
        self._writer = writer
        self._distinct = distinct
        self._n_rows = 0
        self._digest = Digest()
        self._last = time.monotonic()

    def skip(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items behind those that an earlier run has done.

        Raises:
            SettingsInvalid: the items before are others.
        """
        done = self._writer.done
        for item in islice(items, done.rows):
            self._add(item)
        if (self._n_rows, self._digest.hex()) != (done.rows, done.digest) and done.rows:
            raise SettingsInvalid(
                f"--resume: the first {done.rows} rows of the input are others than those of the "
                "run before. Give the same input, or leave --resume out to begin anew"
            )
        return items

    def _add(self, item: Item) -> None:
        self._digest.add(item)
        self._n_rows += 1

    def write(self, block: Block, items: Sequence[Item]) -> None:
        """Append a block with the vectors of some rows."""
        self._writer.write(block)
        for item in items:
            self._add(item)
        if time.monotonic() - self._last >= _COMMIT_S:
            self.commit()

    def commit(self, *, is_last: bool = False) -> None:
        """Have the disk hold all rows so far, and the texts that are remembered."""
        if self._distinct:
            self._distinct.commit()
        self._writer.commit(
            Progress(
                rows=self._n_rows,
                digest=self._digest.hex(),
                texts=self._distinct.n_texts if self._distinct else 0,
                truncated=self._job.n_truncated,
                unknown=self._job.n_unknown,
                is_last=is_last,
            )
        )
        self._last = time.monotonic()
