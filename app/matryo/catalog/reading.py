"""Reads a folder's `model.toml` into a manifest, or says what is wrong with the file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from matryo.catalog.manifest import Manifest
from matryo.core.errors import ManifestInvalid
from matryo.core.untrusted import read_bytes, refusing

_SHOWN_CHARS = 200

MANIFEST_MAX_BYTES = 1 << 20
"""Most bytes of a `model.toml`; those that are shipped have about 2 kB."""


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/model.toml`.

    Raises:
        ManifestInvalid: the file cannot be read, is not TOML, or has a missing, unknown or
            wrong key; the message names file, key and remedy.
    """
    path = folder / "model.toml"
    try:
        content = read_bytes(path, MANIFEST_MAX_BYTES).decode()
    except (OSError, ValueError) as exc:
        raise ManifestInvalid(f"{path}: cannot be read: {exc}") from exc
    return parse_manifest(path, content)


def parse_manifest(path: Path, content: str) -> Manifest:
    """The manifest in a text of TOML.

    Args:
        path: of the `model.toml`, whose folder must have the name of the model; may not exist.
        content: the text.

    Raises:
        ManifestInvalid: see `read_manifest`.
    """
    with refusing(lambda reason: ManifestInvalid(f"{path}: cannot be read: {reason}")):
        manifest = _parse(path, content)
    if manifest.id != path.parent.name:
        raise ManifestInvalid(
            f"{path}: id is '{manifest.id}' but the folder is '{path.parent.name}'; give both one "
            "name"
        )
    return manifest


def _parse(path: Path, content: str) -> Manifest:
    """The manifest that a text of TOML describes; see `read_manifest`."""
    try:
        data = tomllib.loads(content)
    except tomllib.TOMLDecodeError as exc:
        raise ManifestInvalid(f"{path}: is not TOML: {exc}") from exc
    try:
        manifest = Manifest.model_validate(_tuples(data))
    except ValidationError as exc:
        raise ManifestInvalid(_explain(path, exc)) from exc
    _ = manifest.output_key  # `[architecture]` may hold any value; one that has no key is refused
    return manifest


def _tuples(value: object) -> object:
    """`value` with its lists as tuples: strict models of frozen tables take no lists."""
    match value:
        case dict():
            table = cast("dict[str, object]", value)
            return {key: _tuples(item) for key, item in table.items()}
        case list():
            return tuple(_tuples(item) for item in cast("list[object]", value))
        case _:
            return value


def _explain(path: Path, exc: ValidationError) -> str:
    """One line for each fault, with the file, the key, what is wrong and what to do."""
    lines: list[str] = []
    for error in exc.errors():
        loc = [str(part) for part in error["loc"] if part != "[key]"]  # a key that is wrong itself
        key = ".".join(loc) or "(file)"
        match error["type"]:
            case "extra_forbidden":
                known = _known_keys(loc[:-1])
                near = difflib.get_close_matches(loc[-1], known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
                lines.append(f"{path}: unknown key '{key}'; {hint}")
            case "missing":
                lines.append(f"{path}: key '{key}' is missing; add it")
            case _:
                reason = error["msg"].removeprefix("Value error, ")
                got = "" if isinstance(error["input"], dict) else f", got {_short(error['input'])}"
                lines.append(f"{path}: key '{key}': {reason}{got}")
    return "\n".join(lines)


def _short(value: object) -> str:
    """A value for a message; a file may hold one of any length."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."


def _known_keys(loc: Sequence[str]) -> list[str]:
    """Keys of the table at `loc`, found by walking the models' annotations.

    Args:
        loc: keys, indexes and tags of unions from the manifest down to the table, as pydantic
            reports them.
    """
    tables: list[object] = [Manifest]
    for part in loc:
        tables = [inner for table in tables for inner in _inner(table, part)]
    return sorted({name for table in tables for name in _fields(table)})


def _fields(annotation: object) -> dict[str, object]:
    """Annotations of a table's fields by name; empty for what is no table."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    return {}


def _inner(annotation: object, part: str) -> list[object]:
    """What `part` leads to from a value of this annotation: one annotation for each choice."""
    if fields := _fields(annotation):
        if part in fields:
            return [fields[part]]
        return [annotation] if part in get_args(fields.get("kind")) else []  # a tag of a union
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inner(arguments[0], part)
    if origin in (Union, UnionType):
        return [inner for choice in arguments for inner in _inner(choice, part)]
    if origin is None or origin is Literal:
        return []
    # A tuple's items and a mapping's values have one annotation, whatever the index or key.
    return [argument for argument in arguments[-2:] if argument is not Ellipsis][-1:]
