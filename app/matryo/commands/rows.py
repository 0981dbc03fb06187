"""One row of a JSON-lines file: its text, its id, and what it asks for.

A row is the body of a request with one text, and an id. Fields are settled by the server's own
table (`matryo.http.openai.fields`): what the server honours is honoured for the row, what the
server refuses is refused. A column that is no field of a request is left unused, and named once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        text: the text to embed.
        key: the id; None if the row has none.
        asked: what the row asks for.
        unused: names of columns that are no field of a request.
    """

    text: str
    key: Key | None
    asked: Asked
    unused: tuple[str, ...]


def read_row(line: str) -> Row:
    """The row of one line.

    Raises:
        InvalidRequest: no JSON object, no text, or a field that cannot be honoured. The message
            does not say which line.
    """
    try:
        data: Any = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"no JSON: {exc.msg} at column {exc.colno}") from exc
    if not isinstance(data, dict):
        raise InvalidRequest(f"{_kind(data)}; a row is a JSON object with a 'text'")
    raw = _distinct(line)
    given = cast("dict[str, Any]", data)
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


def _one_of(names: tuple[str, str], fields: dict[str, Any]) -> str | None:
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
