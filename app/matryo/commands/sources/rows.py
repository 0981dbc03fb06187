"""One row of a JSON-lines file: its text, its id, and what it asks for.

A row is the body of a request with one text, and an id. Fields are settled by the server's own
table (`matryo.http.openai.fields`): what the server honours is honoured for the row, what the
server refuses is refused. A column that is no field of a request is left unused, and named once.

Where the user names the column of the texts, a row is a record of a table: only the columns that
the user names are read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson

from matryo.core.errors import InvalidRequest
from matryo.http.openai.fields import settle

TEXTS = ("text", "input")
KEYS = ("id", "custom_id")

# A JSON string, a mark, or a number or word. Every line was parsed before.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


@dataclass(frozen=True, slots=True)
class Asked:
    """What one row asks for; None leaves the choice to the command line.

    Attributes:
        model: id or alias of the model, perhaps with a suffix for the input type.
        input_type: what the text is for.
        dimensions: output size.
        truncate: cut the text if it is over the model's limit.
    """

    model: str | None = None
    input_type: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None


NOTHING = Asked()
"""A row that asks for nothing."""


@dataclass(frozen=True, slots=True)
class Key:
    """The id of a row, as it came.

    Attributes:
        name: the field, one of `KEYS`.
        json: the id's JSON, to the character.
    """

    name: str
    json: str

    @property
    def text(self) -> str | None:
        """The id for a column of strings: a string itself, None for null, else its JSON."""
        value: Any = orjson.loads(self.json) if self.json[0] in '"n' else self.json
        return value


class Json(str):
    """The JSON of a value, to the character."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        text: the text to embed; None if a named column is null.
        key: the id; None if the row has none.
        asked: what the row asks for.
        unused: names of columns that are no field of a request.
        kept: the values of the columns that are handed through.
    """

    text: str | None
    key: Key | None
    asked: Asked = NOTHING
    unused: tuple[str, ...] = ()
    kept: tuple[Json | None, ...] = ()


def read_record(line: str, text: str | None, key: str | None, keep: Sequence[str]) -> Row:
    """The row of one line whose columns the user names.

    Args:
        line: a JSON object.
        text: the column of the texts; None for a row that is the body of a request.
        key: the column of the id; None for `id` or `custom_id`, if the row has one.
        keep: columns that are handed through; a row may lack them.

    Raises:
        InvalidRequest: see `read_row`; or the line lacks a column that is named.
    """
    given = _object(line)
    key_name = key or _one_of(KEYS, given)
    raw = _distinct(line) if keep or key_name or text is None else {}
    kept = tuple(Json(raw[name]) if name in raw else None for name in keep)
    for name in (text, key):
        if name is not None and name not in given:
            raise InvalidRequest(f"the row has no column '{_short(name)}'; {_columns(given)}")
    found_key = Key(key_name if key_name in KEYS else KEYS[0], raw[key_name]) if key_name else None
    if text is not None:
        value = given[text]
        return Row(None if value is None else _string(text, value), found_key, kept=kept)
    named = {name for name in (key, *keep) if name is not None and name not in HONOURED}
    row = _request({k: v for k, v in given.items() if k not in named or k in TEXTS}, raw)
    return replace(row, key=found_key, kept=kept)


def read_row(line: str) -> Row:
    """The row of one line.

    Raises:
        InvalidRequest: no JSON object, no text, or a field that cannot be honoured. The message
            does not say which line.
    """
    return _simple(line) or _request(_object(line), _distinct(line))


def _simple(line: str) -> Row | None:
    """The row of a line with a text, perhaps an id, and nothing else; None for any other line.

    Most lines of a large file are such, and `_distinct` costs more than all else of a row.
    """
    if "\\" in line:
        return None
    try:
        data: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(data) is not dict:
        return None
    fields = cast("dict[str, Any]", data)
    names = [name for name in TEXTS if type(fields.get(name)) is str]
    keys = [name for name in KEYS if name in fields]
    # Without escapes, a name that stands twice shows as more quotation marks.
    n_strings = sum(type(value) is str for value in fields.values())
    n_marks = 2 * (len(fields) + n_strings)
    if (
        len(names) != 1
        or len(keys) > 1
        or len(fields) != 1 + len(keys)
        or line.count('"') != n_marks
    ):
        return None
    if not keys:
        return Row(fields[names[0]], None)
    value = fields[keys[0]]
    if type(value) is str:
        return Row(fields[names[0]], Key(keys[0], f'"{value}"'))
    # Zero may have been a minus zero.
    return Row(fields[names[0]], Key(keys[0], str(value))) if type(value) is int and value else None


def _object(line: str) -> dict[str, Any]:
    try:
        data: Any = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"no JSON: {exc.msg} at column {exc.colno}") from exc
    if not isinstance(data, dict):
        raise InvalidRequest(f"{_kind(data)}; a row is a JSON object with a 'text'")
    return cast("dict[str, Any]", data)


def _columns(given: Iterable[str], most: int = 10) -> str:
    """The names of columns, for a message."""
    names = [f"'{_short(name)}'" for name in given]
    return f"its columns are {', '.join(names[:most])}" if names else "it has no columns"


def _request(given: dict[str, Any], raw: dict[str, str]) -> Row:
    """The row of an object that is the body of a request."""
    fields = {name: value for name, value in given.items() if value is not None or name in KEYS}
    text_name = _one_of(TEXTS, fields)
    if text_name is None:
        raise InvalidRequest("a row needs a 'text' (or 'input')")
    key_name = _one_of(KEYS, fields)
    others = {name: fields[name] for name in fields if name not in (text_name, key_name)}
    settled, unused = settle(others, (*HONOURED, *FIXED, "user"), "warn")
    for name in unused:
        _check_name(name)
    for name in FIXED:
        if settled.get(name) is not None:
            _check_fixed(name, settled[name])
    asked = {
        name: check(name, settled[name])
        for name, check in HONOURED.items()
        if settled.get(name) is not None
    }
    return Row(
        _string(text_name, fields[text_name]),
        Key(key_name, raw[key_name]) if key_name else None,
        Asked(**cast("dict[str, Any]", asked)) if asked else NOTHING,
        unused,
    )


# --- the table of fields


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' is {_kind(value)}; it must be a string")
    return value


def _whole(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"'{name}' is {_shown(value)}; it must be an integer of at least 1")
    return value


def _truncate(name: str, value: object) -> bool:
    meanings = {"END": True, "NONE": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in meanings:
        return meanings[value]
    raise InvalidRequest(f"'{name}' is {_shown(value)}; it must be a boolean, 'END' or 'NONE'")


HONOURED: dict[str, Callable[[str, object], object]] = {
    "model": _string,
    "input_type": _string,
    "dimensions": _whole,
    "truncate": _truncate,
}
"""Fields that choose the vector of their row, and what checks their value."""

FIXED: dict[str, tuple[object, ...]] = {
    "encoding_format": ("float",),
    "embedding_type": ("float",),
}
"""Fields that one file of vectors has once, and the values that it has."""


def _check_fixed(name: str, value: object) -> None:
    if not any(value is known or (value == known and type(value) is str) for known in FIXED[name]):
        raise InvalidRequest(
            f"'{name}' is {_shown(value)}, which a file of vectors cannot honour; leave the "
            "field out"
        )


def _check_name(name: str) -> None:
    """Refuse a name that was probably meant for a field that chooses the vector."""
    plain = {_plain(known): known for known in (*TEXTS, *HONOURED)}
    near = [_plain(name)] if _plain(name) in plain else []
    long = [known for known in plain if len(known) >= len("truncate")]
    near = near or difflib.get_close_matches(_plain(name), long, n=1, cutoff=0.85)
    if near and name != "user":
        raise InvalidRequest(
            f"'{_short(name)}' is no field of a row; did you mean '{plain[near[0]]}'?"
        )


def _plain(name: str) -> str:
    """A name without case, marks and plural."""
    return re.sub(r"[\W_]", "", name.lower()).removesuffix("s")


def _one_of(names: tuple[str, str], fields: Mapping[str, Any]) -> str | None:
    found = [name for name in names if name in fields]
    if len(found) > 1:
        raise InvalidRequest(f"the row has '{names[0]}' and '{names[1]}'; give one of them")
    return found[0] if found else None


# --- JSON


def raw_fields(line: str) -> Iterator[tuple[str, str]]:
    """Name and JSON of each field of an object that is known to be valid."""
    depth, start, name = 0, 0, None
    for match in _TOKEN.finditer(line):
        part = match[0]
        if part in ("]", "}"):
            depth -= 1
        if name is None:
            if depth == 1 and part[0] == '"':
                name = str(orjson.loads(part))
        elif depth == 1 and part == ":":
            start = match.end()
        elif (depth, part) in ((1, ","), (0, "}")):
            yield name, line[start : match.start()].strip()
            name = None
        if part in ("[", "{"):
            depth += 1


def _distinct(line: str) -> dict[str, str]:
    """JSON of every field of an object, by name."""
    raw: dict[str, str] = {}
    for name, value in raw_fields(line):
        if name in raw:
            raise InvalidRequest(f"the field '{_short(name)}' stands twice in one row")
        raw[name] = value
    return raw


def _shown(value: object) -> str:
    """A value in a message; what may be long is named by its kind."""
    if isinstance(value, str):
        return f"a string, '{_short(value)}'"
    if type(value) in (int, float):
        return str(value)
    return _kind(value)


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal number",
        str: "a string",
        list: "an array",
    }
    return kinds.get(type(value), "an object")
