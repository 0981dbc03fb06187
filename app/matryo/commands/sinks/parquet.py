"""Vectors as Parquet.

A Parquet file cannot go on after a kill, because its index is at its end. Until the last row, the
rows are therefore Arrow streams, one after another, each of which is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from matryo.commands.sinks.block import LITTLE, Block, Head, numbers
from matryo.commands.sources.item import Item
from matryo.commands.sources.parquet import dump, load_pyarrow
from matryo.commands.sources.rows import KEYS, Json, Key

_GROUP_BYTES = 32 << 20  # of vectors in a row group: large for readers, small for our memory


class Parquet:
    """Columns `index` (int64), `id`, columns that are handed through, and `embedding`.

    `embedding` is a list of a fixed size. `chunk`, `start` and `end` (int64) stand before it where
    vectors have windows. Ids are strings unless they come from a column of integers: a string is
    written as it is, an absent one and null as null, any other value as its JSON.
    """

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self._pa = pa = load_pyarrow()
        self._file = file
        self._head = head
        self._id_type = head.types.get(KEYS[0], pa.string())
        self._kept_types = [head.types.get(name, pa.string()) for name in head.keep]
        number = pa.from_numpy_dtype(np.dtype(LITTLE[head.dtype]))
        spans = [(name, pa.int64()) for name in ("chunk", "start", "end") if head.has_spans]
        facts = {f"matryo.{name}": value for name, value in head.facts.items()}
        self._schema = pa.schema(
            [
                ("index", pa.int64()),
                (KEYS[0], self._id_type),
                *zip(head.keep, self._kept_types, strict=True),
                *spans,
                ("embedding", pa.list_(number, head.dimensions)),
            ],
            metadata=facts or None,
        )

    def write(self, block: Block) -> None:
        """Append one complete Arrow stream with the rows of a block."""
        pa = self._pa
        flat = np.ascontiguousarray(numbers(block.vectors, self._head.dtype)).reshape(-1)
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(flat), self._head.dimensions)
        spans = block.spans or ()
        columns = [
            pa.array(np.asarray(block.indexes, np.int64)),
            pa.array([_id(item.key, self._id_type, pa) for item in block.items], self._id_type),
            *self._kept(block.items),
        ]
        if self._head.has_spans:
            columns += [
                pa.array(np.array([getattr(span, name) for span in spans], np.int64))
                for name in ("chunk", "start", "end")
            ]
        batch = pa.record_batch([*columns, embeddings], schema=self._schema)
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, self._schema) as writer:
            writer.write_batch(batch)
        self._file.write(stream.getvalue())

    def _kept(self, items: Sequence[Item]) -> Iterator[Any]:
        for at, (name, arrow_type) in enumerate(
            zip(self._head.keep, self._kept_types, strict=True)
        ):
            values = [item.kept[at] if item.kept else None for item in items]
            if name not in self._head.types:
                values = [_text(value) for value in values]
            yield self._pa.array(values, arrow_type)

    def finish(self, n_vectors: int, whole: BinaryIO | None) -> None:
        """Write the Parquet file, a row group at a time."""
        pa = self._pa
        assert whole is not None, "a Parquet file is written apart"
        n_bytes = np.dtype(LITTLE[self._head.dtype]).itemsize * self._head.dimensions
        n_rows = max(1, _GROUP_BYTES // n_bytes)
        with pa.parquet.ParquetWriter(whole, self._schema) as writer:
            for batches in self._groups(n_vectors, n_rows):
                table = pa.Table.from_batches(batches, schema=self._schema)
                writer.write_table(table, row_group_size=table.num_rows)

    def _groups(self, n_vectors: int, n_rows: int) -> Iterator[list[Any]]:
        """The batches of each row group, of at least `n_rows` rows but for the last."""
        group: list[Any] = []
        n_read = 0
        self._file.flush()
        self._file.seek(0)
        while n_read < n_vectors:
            with self._pa.ipc.open_stream(_Unbuffered(self._file)) as stream:
                group += list(stream)
            n_read += group[-1].num_rows
            if sum(batch.num_rows for batch in group) >= n_rows:
                yield group
                group = []
        if group:
            yield group


class _Unbuffered:
    """A file for pyarrow that stays open when pyarrow closes it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.readable = file.readable

    def close(self) -> None:
        """Leave the file open."""


def _id(key: Key | None, arrow_type: Any, pa: Any) -> object:  # noqa: ANN401 - pyarrow is untyped
    if key is None:
        return None
    if pa.types.is_integer(arrow_type):
        return None if key.json == "null" else int(key.json)
    return key.text


def _text(value: object) -> str | None:
    """A value in a column of strings: a string itself, None for null, else its JSON."""
    if isinstance(value, Json):
        return Key("", str(value)).text  # orjson takes no subclass
    return value if value is None or isinstance(value, str) else dump(value)
