"""`matryo embed`: the server's own pipeline on a file, without a server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import click
import numpy as np
import orjson
from prometheus_client import CollectorRegistry

from matryo.commands.ready import ready_engines
from matryo.core.errors import ContextTooLong, InvalidRequest, SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.engine.postprocess import FloatArray
from matryo.http.openai.wire import EmbeddingRequest, Inputs
from matryo.main import scheduler_config
from matryo.scheduler import Scheduler
from matryo.service.inputs import Choices, Defaults, Directory, choose, fingerprint_of, tokenize
from matryo.store.files import PART

# Texts in flight: enough of like length for full batches, few enough to stream any file.
_WINDOW = 512


@dataclass(frozen=True, slots=True)
class Item:
    """One text of the file.

    Attributes:
        line: counted from 1, for messages.
        key: the `id` of a JSONL object, handed through; None if it has none.
    """

    line: int
    text: str
    key: object = None


def run(
    settings: Settings,
    file: Path,
    output: Path | None,
    request: EmbeddingRequest,
) -> None:
    """Embed every line of `file`, in order.

    Args:
        settings: as for a server; the first model is the one.
        file: lines or JSONL; `-` is standard input.
        output: `.jsonl`, `.npy` or `.parquet`; None writes JSON lines to standard output.
        request: input type, dimensions and truncation, as a caller of the API gives them.

    Raises:
        InvalidRequest: a line that cannot be read or embedded; names it.
        SettingsInvalid: an output of another format, or Parquet without pyarrow.
        SetupError: the model cannot be made ready.
    """
    choices = _choose(settings, request)
    with ExitStack() as stack:
        writer = stack.enter_context(_open_writer(output, choices.dimensions))
        lines = stack.enter_context(open_lines(file))
        items = read_items(lines, str(file))
        _embed_all(settings, items, writer, request, choices)


def embed_items(
    settings: Settings, items: Iterator[Item], writer: Writer, request: EmbeddingRequest
) -> str:
    """Embed every item, in order; as `run`, from and to anything.

    Returns:
        The fingerprint of the vectors.
    """
    choices = _choose(settings, request)
    _embed_all(settings, items, writer, request, choices)
    return fingerprint_of(choices, "float")


def _choose(settings: Settings, request: EmbeddingRequest) -> Choices:
    directory = Directory(ready_engines(settings), {})
    choices = choose(request, directory, Defaults(settings.default_input_type))
    if choices.warning:
        click.echo(f"warning: {choices.warning}", err=True)
    return choices


def _embed_all(
    settings: Settings,
    items: Iterator[Item],
    writer: Writer,
    request: EmbeddingRequest,
    choices: Choices,
) -> None:
    with TerminalReporter().bar("embedding", unit="text") as advance:
        work = _embed(items, writer, advance, settings=settings, request=request, choices=choices)
        asyncio.run(work)


async def _embed(
    items: Iterator[Item],
    writer: Writer,
    advance: Callable[[int], None],
    *,
    settings: Settings,
    request: EmbeddingRequest,
    choices: Choices,
) -> None:
    scheduler = Scheduler(
        [choices.engine], scheduler_config(settings), Metrics(CollectorRegistry())
    )
    await scheduler.start()
    try:
        with ThreadPoolExecutor(1) as executor:
            while window := list(islice(items, _WINDOW)):
                inputs = Inputs([item.text for item in window], is_list=True)
                try:
                    tokenized = await tokenize(
                        inputs, request, choices, executor=executor, max_tokens=None
                    )
                except ContextTooLong as exc:
                    raise InvalidRequest(
                        f"line {window[exc.index or 0].line} has {exc.n_tokens} tokens, and "
                        f"{choices.engine.manifest.id} takes {exc.max_tokens}; "
                        "give --truncate to have such texts cut"
                    ) from exc
                vectors = await scheduler.run(choices.engine, tokenized.texts, choices.dimensions)
                writer.write(window, vectors)
                advance(len(window))
    finally:
        await scheduler.close()


# --- reading


@contextmanager
def open_lines(file: Path) -> Generator[Iterable[bytes], None, None]:
    """The lines of a file, `-` for standard input.

    Raises:
        InvalidRequest: it cannot be opened.
    """
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as exc:
        raise InvalidRequest(f"{file}: cannot be read: {exc.strerror}") from exc
    with opened:
        yield opened


def read_items(lines: Iterable[bytes], name: str) -> Iterator[Item]:
    """Texts of a file: JSONL if its first line is an object with "text" or "input", else lines.

    Args:
        lines: with or without their line ends.
        name: the file's, for messages.

    Raises:
        InvalidRequest: a line that is not UTF-8, or, in JSONL, not such an object.
    """
    as_json: bool | None = None
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip(b"\r\n")
        if as_json is None:
            as_json = _text_of(line) is not None
        if as_json:
            found = _text_of(line)
            if found is None:
                raise InvalidRequest(
                    f'{name}, line {number}: not a JSON object with a string "text" or "input", '
                    "as the first line is"
                )
            yield Item(number, *found)
            continue
        try:
            yield Item(number, line.decode("utf-8"))
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"{name}, line {number}: not UTF-8: {exc.reason}") from exc


def _text_of(line: bytes) -> tuple[str, object] | None:
    try:
        data: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict):
        return None
    fields = cast("dict[str, object]", data)
    text = fields.get("text", fields.get("input"))
    return (text, fields.get("id")) if isinstance(text, str) else None


# --- writing


class Writer(Protocol):
    """Takes the vectors of one window after another."""

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        """Append; rows of `vectors` are those of `items`."""
        ...

    def finish(self) -> None:
        """Make the file whole."""
        ...


class _JsonLines:
    """`{"index": 0, "embedding": [...]}` a line, with the input's `id` where it had one."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        del dimensions
        self._file = file
        self._n_rows = 0

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        for item, vector in zip(items, vectors, strict=True):
            row: dict[str, object] = {"index": self._n_rows}
            if item.key is not None:
                row["id"] = item.key
            row["embedding"] = vector
            options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
            self._file.write(orjson.dumps(row, option=options))
            self._n_rows += 1

    def finish(self) -> None:
        self._file.flush()


class _Npy:
    """One `(n, D)` float32 array; numpy pads the header so that `n` can be written last."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        self._file = file
        self._shape = (0, dimensions)
        self._write_header()

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)
        self._shape = (self._shape[0] + len(items), self._shape[1])

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class _Parquet:
    """Columns `index` (int64), `id` (string or null) and `embedding` (float32 list)."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as exc:
            raise SettingsInvalid(
                "Parquet needs pyarrow; install it with: pip install 'matryo[parquet]'"
            ) from exc
        self._pa: Any = pa
        self._schema: Any = pa.schema(
            [
                ("index", pa.int64()),
                ("id", pa.string()),
                ("embedding", pa.list_(pa.float32(), dimensions)),
            ]
        )
        self._writer: Any = cast("Any", pq).ParquetWriter(file, self._schema)
        self._n_rows = 0

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        pa = self._pa
        index = np.arange(self._n_rows, self._n_rows + len(items))
        keys = [None if item.key is None else str(item.key) for item in items]
        flat = pa.array(vectors.reshape(-1))
        embeddings = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        columns = [pa.array(index), pa.array(keys, pa.string()), embeddings]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._n_rows += len(items)

    def finish(self) -> None:
        self._writer.close()


_WRITERS: dict[str, Callable[[BinaryIO, int], Writer]] = {
    ".jsonl": _JsonLines,
    ".npy": _Npy,
    ".parquet": _Parquet,
}


@contextmanager
def _open_writer(output: Path | None, dimensions: int) -> Generator[Writer, None, None]:
    """A writer for the format of the name; a file gets its name only when it is complete."""
    if output is None:
        writer = _JsonLines(sys.stdout.buffer, dimensions)
        yield writer
        writer.finish()
        return
    if output.suffix not in _WRITERS:
        raise SettingsInvalid(
            f"--output {output}: unknown format '{output.suffix}'; "
            f"give a name that ends in {', '.join(_WRITERS)}"
        )
    part = output.with_name(output.name + PART)
    try:
        with part.open("wb") as file:
            writer = _WRITERS[output.suffix](file, dimensions)
            yield writer
            writer.finish()
        part.rename(output)
    except OSError as exc:
        raise SettingsInvalid(f"--output {output}: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)
