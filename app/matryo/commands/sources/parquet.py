"""Texts of Parquet files, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

import orjson

from matryo.commands.sources.item import Item, Reading, Warnings
from matryo.commands.sources.lines import null_text
from matryo.commands.sources.rows import KEYS, Key
from matryo.commands.sources.table import Chosen, choose_columns
from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.service.limits import WINDOW_TEXTS

_BUFFER_BYTES = 1 << 20


class TypeBook:
    """The Arrow types of the columns that are handed through, equal in every file of an input.

    Attributes:
        types: of each column, by its name; `id` is that of the ids.
    """

    def __init__(self) -> None:
        self.types: dict[str, Any] = {}
        self._first = ""

    def note(self, name: str, file: str, arrow_type: Any) -> None:  # noqa: ANN401 - pyarrow's types are incomplete
        """Take the type of a column of one more file.

        Raises:
            InvalidRequest: another file has another type.
        """
        known = self.types.setdefault(name, arrow_type)
        self._first = self._first or file
        if known != arrow_type:
            raise InvalidRequest(
                f"{file}: the column '{name}' is {arrow_type}, and in {self._first} it is {known}. "
                "Write both files with one type, or leave the column out of --keep"
            )


def load_pyarrow() -> Any:  # noqa: ANN401 - likewise
    """The module `pyarrow`, with `pyarrow.parquet` loaded.

    Raises:
        SettingsInvalid: pyarrow is not installed.
    """
    try:
        pa: Any = import_module("pyarrow")
        import_module("pyarrow.parquet")
    except ImportError as exc:
        raise SettingsInvalid(
            "Parquet needs pyarrow; install it with: pip install 'matryo[parquet]'"
        ) from exc
    return pa


def read_parquet(
    file: BinaryIO, name: str, reading: Reading, warnings: Warnings, book: TypeBook, label: str = ""
) -> Iterator[Item]:
    """The text of every row, in order. A null text is the empty text.

    Args:
        file: bytes, with `seek`.
        name: of the file, for messages.
        reading: the columns.
        warnings: print each warning once.
        book: takes the types of the columns.
        label: `Item.name`.

    Raises:
        InvalidRequest: no Parquet, no such column, or a column of texts that holds no strings.
        SettingsInvalid: pyarrow is not installed.
    """
    pa = load_pyarrow()
    try:
        # The buffer makes pyarrow read page by page, and not a row group at a time.
        table = pa.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        schema = table.schema_arrow
        columns = choose_columns(schema.names, name, reading)
        _note_types(pa, schema, columns, name, book)
        wanted = list(dict.fromkeys([columns.text, *columns.keep, *filter(None, [columns.key])]))
        batches = table.iter_batches(WINDOW_TEXTS, columns=wanted, use_threads=False)
        line = 0
        for batch in batches:
            for item in _items(batch, columns, line, label):
                if item.text is None:
                    warnings.say("null", null_text(f"{name}, row {item.line}"))
                    yield item._replace(text="")
                else:
                    yield item
            line += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise InvalidRequest(f"{name}: cannot be read as Parquet: {reason}") from exc


def _note_types(pa: Any, schema: Any, columns: Chosen, name: str, book: TypeBook) -> None:  # noqa: ANN401
    text_type = _plain(pa, schema.field(columns.text).type)
    if not (pa.types.is_string(text_type) or pa.types.is_null(text_type)):
        raise InvalidRequest(
            f"{name}: the column '{columns.text}' is {schema.field(columns.text).type}, and texts "
            "are strings; give --column NAME"
        )
    if columns.key:
        given = schema.field(columns.key).type
        number = pa.uint64() if pa.types.is_uint64(given) else pa.int64()
        book.note(KEYS[0], name, number if pa.types.is_integer(given) else pa.string())
    for column in columns.keep:
        book.note(column, name, _plain(pa, schema.field(column).type))


def _plain(pa: Any, given: Any) -> Any:  # noqa: ANN401
    """The type of the values: of a dictionary's values, and `string` for every kind of string."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    is_text = pa.types.is_large_string(given) or pa.types.is_string_view(given)
    return pa.string() if is_text else given


def _items(batch: Any, columns: Chosen, line: int, label: str) -> Iterator[Any]:  # noqa: ANN401
    lists = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    keys = lists[columns.key] if columns.key else None
    key_name = columns.key if columns.key in KEYS else KEYS[0]
    kept = [lists[name] for name in columns.keep]
    for at, text in enumerate(lists[columns.text]):
        key = Key(key_name, dump(keys[at])) if keys else None
        values = tuple(column[at] for column in kept)
        yield Item(line + at + 1, text, key, kept=values, name=label, unit="row")


def dump(value: object) -> str:
    """The JSON of a Python object; what JSON lacks becomes a string, bytes become hex digits."""
    return orjson.dumps(value, default=_plain_object, option=orjson.OPT_NON_STR_KEYS).decode()


def _plain_object(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)
