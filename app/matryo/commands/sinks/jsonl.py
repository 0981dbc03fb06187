"""Vectors as JSON lines."""

from __future__ import annotations

from typing import Any, BinaryIO

import orjson

from matryo.commands.sinks.block import Block, Head, numbers
from matryo.commands.sources.parquet import dump
from matryo.commands.sources.rows import Json

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class JsonLines:
    """`{"index": 0, "embedding": [...]}` a line, with the input's id, character by character.

    Columns that are handed through follow the id; `chunk`, `start` and `end` follow them.
    """

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self._file = file
        self._head = head

    def write(self, block: Block) -> None:
        """Append the rows of a block."""
        keep = self._head.keep
        spans = block.spans or [None] * len(block.items)
        vectors = numbers(block.vectors, self._head.dtype)
        for item, index, vector, span in zip(
            block.items, block.indexes, vectors, spans, strict=True
        ):
            row: dict[str, object] = {"index": index}
            if item.key is not None:
                row[item.key.name] = orjson.Fragment(item.key.json)
            if keep:
                row.update(zip(keep, map(_value, item.kept or (None,) * len(keep)), strict=True))
            if span:
                row |= {"chunk": span.chunk, "start": span.start, "end": span.end}
            row["embedding"] = vector
            self._file.write(orjson.dumps(row, option=_OPTIONS))

    def finish(self, n_vectors: int, whole: BinaryIO | None) -> None:
        """Nothing is left to do."""
        del n_vectors, whole


def _value(value: object) -> Any:  # noqa: ANN401 - JSON is anything
    if isinstance(value, Json):
        return orjson.Fragment(str(value))  # orjson takes no subclass
    return value if value is None or isinstance(value, str) else orjson.Fragment(dump(value))
