"""Vectors to a file or to standard output: JSON lines, `.npy` or Parquet."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import orjson

from matryo.commands.texts import Item
from matryo.core.errors import SettingsInvalid
from matryo.engine.postprocess import FloatArray
from matryo.store.files import PART, publish_file


class Writer(Protocol):
    """Takes the vectors of one window after another."""

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        """Append; rows of `vectors` are those of `items`."""
        ...

    def finish(self) -> None:
        """Make the file whole."""
        ...


class _JsonLines:
    """`{"index": 0, "embedding": [...]}` a line, with the input's id, character by character."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        del dimensions
        self._file = file
        self._n_rows = 0

    def write(self, items: Sequence[Item], vectors: FloatArray) -> None:
        for item, vector in zip(items, vectors, strict=True):
            row: dict[str, object] = {"index": self._n_rows}
            if item.key is not None:
                row[item.key.name] = orjson.Fragment(item.key.json)
            row["embedding"] = vector
            options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
            self._file.write(orjson.dumps(row, option=options))
            self._n_rows += 1

    def finish(self) -> None:
        self._file.flush()


class _Npy:
    """One `(n, D)` float32 array; numpy pads the header, which is written again with `n`."""

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
    """Columns `index` (int64), `id` (string or null) and `embedding` (float32 list).

    A string id is written as it is, an absent one and null as null, any other as its JSON.
    """

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
        keys = [None if item.key is None else item.key.text for item in items]
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


def check_output(output: Path | None, source: os.stat_result | None) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Args:
        output: a file; None for standard output.
        source: of the input, which must not be the output; None if it has no descriptor.

    Raises:
        SettingsInvalid: the output is the input under any name, a folder or a device, has an
            unknown format, or lies in no folder that this user may write.
    """
    if output is None:
        _check_standard_output(source)
        return
    if output.suffix.lower() not in _WRITERS:
        raise SettingsInvalid(
            f"--output {output}: unknown format '{output.suffix}'; "
            f"give a name that ends in {', '.join(_WRITERS)}"
        )
    final = _final(output)
    for path in (final, _part(final)):
        try:
            found = path.stat()
        except OSError:
            continue
        if source and os.path.samestat(found, source):
            raise SettingsInvalid(
                f"--output {output}: {path.name} is the input, which would be overwritten; give "
                "another name"
            )
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise SettingsInvalid(
                f"--output {output}: {path.name} is {kind}; give the name of a file"
            )
    if not final.parent.is_dir():
        raise SettingsInvalid(f"--output {output}: there is no folder {final.parent}; make it")
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise SettingsInvalid(f"--output {output}: this user may not write to {final.parent}")


def _check_standard_output(source: os.stat_result | None) -> None:
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the shell
        raise SettingsInvalid("standard output is closed; give --output FILE")
    try:
        found = os.fstat(sys.stdout.fileno())
    except OSError:  # a stand-in without a descriptor
        return
    if source and stat.S_ISREG(found.st_mode) and os.path.samestat(found, source):
        raise SettingsInvalid("standard output is the input file; redirect to another file")


def _final(output: Path) -> Path:
    """The file itself where `output` is a symbolic link: the link stays."""
    return Path(os.path.realpath(output))


def _part(final: Path) -> Path:
    return final.with_name(final.name + PART)


@contextmanager
def open_writer(output: Path | None, dimensions: int) -> Generator[Writer, None, None]:
    """A writer for the format of the name; a file gets its name only when it is complete.

    Raises:
        BrokenPipeError: the reader of standard output is gone.
        SettingsInvalid: the output cannot be written, for instance because a disk is full.
    """
    if output is None:
        try:
            writer = _JsonLines(sys.stdout.buffer, dimensions)
            yield writer
            writer.finish()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise SettingsInvalid(f"standard output: {exc.strerror or exc}") from exc
        return
    final = _final(output)
    part = _part(final)
    try:
        with part.open("wb") as file:
            writer = _WRITERS[output.suffix.lower()](file, dimensions)
            yield writer
            writer.finish()
        publish_file(part, final)
    except OSError as exc:
        raise SettingsInvalid(f"--output {output}: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)
