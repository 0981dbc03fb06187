"""`matryo key`: makes keys, hashes them, and checks a file of keys."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from matryo.commands.table import Cell, Column, draw_table, draws_tables
from matryo.core.errors import SettingsInvalid
from matryo.core.sources import shown
from matryo.service.key_file import (
    Key,
    NamedKey,
    check_name,
    hash_of,
    merged,
    parse_keys,
    read_keys,
)

_PREFIX, _RANDOM_BYTES = "sk-matryo-", 32
_LEAST_LENGTH = 24  # of a key that nobody can guess from its hash
_MOST_LENGTH = 4096

_PAST = " PAST"
_ROW = "{:<24} {:>10} {:>14} {:>16} {:>6}  {:<25} {}"
_HEAD = ("KEY", "REQUESTS/M", "TOKENS/M", "TOKENS/DAY", "WEIGHT", "EXPIRES", "MODELS")
_COLUMNS = [
    Column(name.lower(), is_number=name.startswith(("REQUESTS", "TOKENS", "WEIGHT")))
    for name in _HEAD
]


def make(name: str, limits: Mapping[str, Any]) -> None:
    """Print a new key and its line for the file of keys.

    Args:
        name: of the key.
        limits: fields of the line, but for the hash; those that are None or empty are left out.

    Raises:
        SettingsInvalid: the name or a limit cannot be used.
    """
    check_name(name)
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    fields = {"sha256": f'"{hash_of(key)}"'}
    for field, value in limits.items():
        if not value:
            continue
        match field:
            case "expires":
                fields[field] = _moment(value)
            case "models":
                fields[field] = json.dumps(list(value), ensure_ascii=True)
            case _:
                fields[field] = f"{value:_}" if isinstance(value, int) else f"{value:g}"
    words = ", ".join(f"{field} = {value}" for field, value in fields.items())
    line = f"{name if '.' not in name else json.dumps(name)} = {{ {words} }}"
    parse_keys(line, "the new line")
    click.echo(key)
    click.echo(line)
    click.echo(
        "The first line is the key: give it to its caller, it is not shown again. The second is "
        "for the file of keys (MATRYO_KEYS_FILE).",
        err=True,
    )


def print_hash() -> None:
    """Print the SHA-256 of the key that standard input has.

    Raises:
        SettingsInvalid: there is no key, or what there is cannot be sent as a key.
    """
    if sys.stdin.isatty():
        key: str = click.prompt("Key", hide_input=True, err=True)
    else:
        key = sys.stdin.read(_MOST_LENGTH + 2).removesuffix("\n").removesuffix("\r")
    if not key:
        raise SettingsInvalid("standard input has no key. Type the key, or pipe it in.")
    if not (key.isascii() and key.isprintable()) or " " in key or len(key) > _MOST_LENGTH:
        raise SettingsInvalid(
            "the key has a blank or a character outside printable ASCII, or more than "
            f"{_MOST_LENGTH} characters. Choose another key."
        )
    if len(key) < _LEAST_LENGTH:
        click.echo(
            f"The key has {len(key)} characters: whoever reads its hash may guess it. `matryo key "
            "new` makes keys that nobody can guess.",
            err=True,
        )
    click.echo(hash_of(key))


def check_file(file: Path) -> None:
    """Print a table of the keys of a file.

    Raises:
        SettingsInvalid: the file is wrong; the message says where.
    """
    keys = merged(read_keys(file))
    if draws_tables():
        draw_table(_COLUMNS, [_drawn(_cells(one)) for one in keys])
    else:
        for row in (_HEAD, *map(_cells, keys)):
            click.echo(_ROW.format(*row))
    click.echo(f"{file} has {len(keys)} keys, and is in order")


def _cells(one: NamedKey) -> tuple[str, ...]:
    key: Key = one.key
    return (
        one.name,
        *map(_count, (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day)),
        f"{key.weight:g}",
        _expiry(key.expires),
        _names(key.models),
    )


def _drawn(cells: tuple[str, ...]) -> list[Cell]:
    """A row on a terminal; a key that has expired stands out."""
    return [(cell, "red") if cell.endswith(_PAST) else cell for cell in cells]


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _names(models: Sequence[str] | None) -> str:
    return "all" if models is None else ", ".join(map(shown, models))


def _expiry(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    day = moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"{day}{_PAST}" if moment <= datetime.now(UTC) else day


def _moment(text: str) -> str:
    """A moment as TOML writes it; a day begins at midnight UTC.

    Raises:
        SettingsInvalid: the text is no moment, or the moment is past.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsInvalid(
            f"--expires is {shown(text)}, but must be a moment such as 2027-01-31 or "
            "2027-01-31T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise SettingsInvalid(f"--expires is {shown(text)}, which is past. Give a later moment.")
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
