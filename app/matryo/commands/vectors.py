"""Vectors to a file or to standard output: JSON lines, `.npy` or Parquet."""

from __future__ import annotations

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
from matryo.store.files import PART


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
def open_writer(output: Path | None, dimensions: int) -> Generator[Writer, None, None]:
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
