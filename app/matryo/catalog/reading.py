"""From a folder's `model.toml` to a manifest, or to sentences that say what is wrong with it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError

from matryo.catalog.manifest import (
    CheckpointFile,
    Dimensions,
    HubSource,
    Manifest,
    Output,
    PrecisionSpec,
    Prompts,
    PypiSource,
    TokenizerSpec,
)
from matryo.core.errors import ManifestInvalid


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/model.toml`.

    Raises:
        ManifestInvalid: unreadable, not TOML, or with a missing, unknown or wrong key;
            the message names file, key and remedy.
    """
    path = folder / "model.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ManifestInvalid(f"{path}: cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ManifestInvalid(f"{path}: is not TOML: {exc}") from exc
    try:
        manifest = Manifest.model_validate(_tuples(data))
    except ValidationError as exc:
        raise ManifestInvalid(_explain(path, exc)) from exc
    if manifest.id != folder.name:
        raise ManifestInvalid(
            f"{path}: id is '{manifest.id}' but the folder is '{folder.name}'; give both one name"
        )
    return manifest


def _tuples(value: object) -> object:
    """TOML's arrays as tuples: strict models of frozen tables take no lists."""
    match value:
        case dict():
            table = cast("dict[str, object]", value)
            return {key: _tuples(item) for key, item in table.items()}
        case list():
            return tuple(_tuples(item) for item in cast("list[object]", value))
        case _:
            return value


def _explain(path: Path, exc: ValidationError) -> str:
    """One line for each fault: file, key, what is wrong, what to do."""
    lines: list[str] = []
    for error in exc.errors():
        loc = [str(part) for part in error["loc"]]
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
                got = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
                lines.append(f"{path}: key '{key}': {reason}{got}")
    return "\n".join(lines)


def _known_keys(loc: Sequence[str]) -> list[str]:
    """Keys of the table at `loc`, found by walking the models' annotations."""
    tables: dict[str, type[BaseModel]] = {
        "": Manifest,
        "tokenizer": TokenizerSpec,
        "prompts": Prompts,
        "output": Output,
        "output.dimensions": Dimensions,
        "wheel": CheckpointFile,
        "hub": HubSource,
        "pypi": PypiSource,
        "files": CheckpointFile,
        "alternatives": CheckpointFile,
        "precisions": PrecisionSpec,
    }
    for name in (".".join(loc), loc[-1] if loc else "", loc[0] if loc else ""):
        if name in tables:
            return sorted(tables[name].model_fields)
    return []
