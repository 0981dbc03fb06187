"""Reads the keys that an operator gives out: a TOML file with a line for each key.

A line has the key's name, the SHA-256 of the key, and limits:

    search = { sha256 = "…", requests_per_minute = 600, models = ["all-minilm-l6-v2"] }

A file without a plain key can be read by others and kept in a repository. A slow hash, as for
passwords, would gain nothing: `matryo key new` makes keys of 256 random bits, which nobody can try
out, and a slow hash would cost every request.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from matryo.core.errors import SettingsInvalid
from matryo.core.sources import shown

MAX_KEYS = 1000
"""Each has series in the metrics."""

_MAX_FILE_BYTES = 4 << 20
_MAX_HASHES = 4
_MOST = 10**12  # exact in the floats of the limits
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NAME_RULE = "1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or a digit"
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_EMPTY = hashlib.sha256(b"").hexdigest()
_LINE = re.compile(r"at line (\d+)")

_Count = Annotated[int, Field(ge=1, le=_MOST)]


class Key(BaseModel):
    """One key and its limits, as the file has them; None for no limit.

    Attributes:
        sha256: of the key, or of several keys that all count as this one.
        requests_per_minute: by any door.
        tokens_per_minute: of embedded texts.
        tokens_per_day: likewise, by days of UTC.
        models: names of models that the key may use.
        expires: the moment from which the key is refused.
        weight: share of the models' time beside other keys that want it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: tuple[str, ...]
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    tokens_per_day: _Count | None = None
    models: tuple[str, ...] | None = None
    expires: AwareDatetime | None = None
    weight: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0

    @field_validator("sha256", mode="before")
    @classmethod
    def _hashes(cls, value: object) -> tuple[str, ...]:
        hashes = [value] if isinstance(value, str) else value
        if not isinstance(hashes, list) or not 0 < len(cast("list[object]", hashes)) <= _MAX_HASHES:
            raise ValueError(f"must be a text of 64 hex digits, or a list of 1 to {_MAX_HASHES}")
        found: list[str] = []
        for one in cast("list[object]", hashes):
            digits = one.strip().lower() if isinstance(one, str) else ""
            if not _HASH.fullmatch(digits):  # not quoted: a plain key may stand there
                raise ValueError("must be 64 hex digits. Run `matryo key hash` to hash a key")
            if digits == _EMPTY:
                raise ValueError("is the hash of an empty key. Run `matryo key hash` again")
            found.append(digits)
        return tuple(found)

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: object) -> tuple[str, ...]:
        names = cast("list[object]", value) if isinstance(value, list) else []
        words = [name for name in names if isinstance(name, str) and name.strip()]
        if not words or len(words) != len(names):
            raise ValueError('must be a list of names of models, such as ["all-minilm-l6-v2"]')
        return tuple(words)

    @field_validator("expires", mode="before")
    @classmethod
    def _moment(cls, value: object) -> datetime:
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise ValueError(
                "must be a moment with a zone and without quotes, such as 2027-01-31T00:00:00Z"
            )
        return value


class NamedKey(BaseModel):
    """A key with its name, and where the key was found.

    Attributes:
        name: shown in logs and metrics.
        key: hash and limits.
        where: file and line, or the variable, for messages.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    key: Key
    where: str


def read_keys(path: Path) -> list[NamedKey]:
    """The keys of a file.

    Raises:
        SettingsInvalid: the file cannot be read, has no key, or has something wrong; the message
            names the file, the line and the key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise SettingsInvalid(
            f"{path}, the file of keys, cannot be read: {exc.strerror}. Let this user read the "
            "file, or correct MATRYO_KEYS_FILE."
        ) from exc
    if len(content) > _MAX_FILE_BYTES:
        raise SettingsInvalid(
            f"{path} has more than {_MAX_FILE_BYTES} bytes, the most of a file of keys. Take keys "
            "out of the file."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise SettingsInvalid(
            f"{path} is not UTF-8 text: byte {exc.start} is 0x{content[exc.start]:02x}. Save the "
            "file as UTF-8."
        ) from None
    return parse_keys(text, str(path))


def parse_keys(text: str, source: str) -> list[NamedKey]:
    """The keys of a text of TOML.

    Args:
        text: with at least one key.
        source: the file's path or the variable's name, for messages.

    Raises:
        SettingsInvalid: see `read_keys`.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    _check_twice(lines, source)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        at = _LINE.search(str(exc))
        where = f"{source} line {at[1]}" if at else f"{source} line {len(lines)}"
        reason = str(exc).partition(" (at ")[0]
        raise SettingsInvalid(
            f"{where} is no TOML: {reason}. A key is one line, such as "
            'search = { sha256 = "64 hex digits" }; plain keys belong into MATRYO_API_KEYS.'
        ) from None
    except RecursionError:
        raise SettingsInvalid(f"{source} is nested too deeply. A key is one line.") from None
    found = [_named(name, fields, lines, source) for name, fields in tables.items()]
    if not found:
        raise SettingsInvalid(
            f"{source} has no key, and the server would refuse everybody. Make a key with "
            "`matryo key new NAME`."
        )
    return found


def merged(keys: Iterable[NamedKey]) -> tuple[NamedKey, ...]:
    """The keys of all sources.

    Raises:
        SettingsInvalid: there are too many, or two with the same name or hash.
    """
    names: dict[str, NamedKey] = {}
    hashes: dict[str, NamedKey] = {}
    for one in keys:
        if first := names.get(one.name):
            raise SettingsInvalid(
                f"{one.where} has a second key '{one.name}'; the first is in {first.where}. "
                "Give one of them another name."
            )
        names[one.name] = one
        for digest in one.key.sha256:
            if first := hashes.get(digest):
                raise SettingsInvalid(
                    f"{one.where}: key '{one.name}' has the hash of key '{first.name}' in "
                    f"{first.where}. Make a new key for one of them, or take one of them out."
                )
            hashes[digest] = one
    if len(names) > MAX_KEYS:
        raise SettingsInvalid(
            f"there are {len(names)} keys, and a server takes at most {MAX_KEYS}. Take out those "
            "that have expired, or give several callers the same key."
        )
    return tuple(names.values())


def bare_keys(keys: Sequence[str], source: str) -> list[NamedKey]:
    """Plain keys without limits, named by their two ends, or by their number if they are short."""
    found: list[NamedKey] = []
    digests: set[str] = set()
    names: set[str] = set()
    for number, key in enumerate(keys, 1):
        digest = hash_of(key)
        if digest in digests:  # the same key twice in one list means no harm
            continue
        name = masked(key)
        if name is None or name in names:
            name = f"{name or '***'}{number}"
        digests.add(digest)
        names.add(name)
        where = f"{source}, key number {number}"
        found.append(NamedKey(name=name, key=Key(sha256=cast("Any", digest)), where=where))
    return found


def check_name(name: str) -> str:
    """The name itself, if a key may have the name.

    Raises:
        SettingsInvalid: the name is no name.
    """
    if _NAME.fullmatch(name):
        return name
    raise SettingsInvalid(f"{shown(name)} is no name of a key. A name has {_NAME_RULE}.")


def hash_of(key: str) -> str:
    """The SHA-256 of a key, in hex digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def masked(key: str) -> str | None:
    """The two ends of a key that is long enough to keep its middle secret; None for others."""
    if len(key) < 4 * _SHOWN:
        return None
    text = key[:_SHOWN] + "***" + key[-_SHOWN:]
    return "".join(c if c.isascii() and c.isprintable() and c not in ' "\\' else "?" for c in text)


_SHOWN = 4


def _named(name: str, fields: object, lines: Sequence[str], source: str) -> NamedKey:
    where = f"{source} line {_line_of(name, lines)}"
    if not _NAME.fullmatch(name):
        raise SettingsInvalid(
            f"{where}: {shown(name)} is no name of a key. A name has {_NAME_RULE}."
        )
    if not isinstance(fields, dict):
        raise SettingsInvalid(
            f"{where}: key '{name}' is no table. Write {name} = {{ sha256 = \"64 hex digits\" }}; "
            "`matryo key new` prints such a line."
        )
    if "key" in fields:
        raise SettingsInvalid(
            f"{where}: key '{name}' has a field 'key', but this file holds no plain key. Run "
            "`matryo key hash`, type the key, and write sha256 = with what it prints."
        )
    try:
        return NamedKey(name=name, key=Key.model_validate(fields), where=where)
    except ValidationError as exc:
        raise SettingsInvalid(f"{where}: key '{name}': {_words(exc)}") from None


def _words(exc: ValidationError) -> str:
    """The first fault of a key's fields, without the value, which may be a plain key."""
    error = exc.errors(include_url=False, include_input=False, include_context=True)[0]
    field = str(error["loc"][0])
    match error["type"]:
        case "missing":
            return f"{field} is missing. Run `matryo key hash` to hash a key."
        case "extra_forbidden":
            known = ", ".join(Key.model_fields)
            return f"unknown field {shown(field)}. The fields are {known}."
        case "value_error":
            return f"{field} {error['msg'].removeprefix('Value error, ')}."
        case _ if field == "weight":
            return "weight must be a number from 0.01 to 100."
        case _:
            return f"{field} must be a whole number from 1 to {_MOST}; leave it out for no limit."


def _line_of(name: str, lines: Sequence[str]) -> int:
    """The number of the line that begins a key."""
    for number, line in enumerate(lines, 1):
        if _begins(line) == name:
            return number
    other = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*[.=]""")
    return next((n for n, line in enumerate(lines, 1) if other.match(line)), 1)


def _check_twice(lines: Sequence[str], source: str) -> None:
    """Refuse a name that two lines have: TOML's own message would not name it."""
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = _begins(line)
        if name is not None and first.setdefault(name, number) != number:
            raise SettingsInvalid(
                f"{source} line {number} has a second key {shown(name)}; the first is in line "
                f"{first[name]}. Give one of them another name."
            )


_BEGIN = re.compile(
    r"""\s*(?:\[\s*(?P<table>[^\[\]]+?)\s*\]\s*(?:\#.*)?|(?P<name>[^=\#\[\{]+?)\s*=\s*\{.*)"""
)


def _begins(line: str) -> str | None:
    """The name of the key that a line begins; None for other lines."""
    found = _BEGIN.fullmatch(line.rstrip("\r"))
    if not found:
        return None
    text: str = found["table"] or found["name"]
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
