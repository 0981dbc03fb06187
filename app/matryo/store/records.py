"""`artifact.json` and other JSON files of the store as typed values, whatever the files hold.

Each function raises a plain error for a value of another type. Callers turn the error into one that
names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast, get_args

from matryo.core.choices import Precision
from matryo.core.untrusted import read_json
from matryo.store.limits import RECORD_MAX_BYTES
from matryo.store.sources import SourceFile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hash of one file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """The content of `artifact.json`.

    Attributes:
        key: 16 hex digits of everything below that shapes a vector.
        checkpoint_sha256: hash of the weights the graph was built from.
        tokenizer_sha256: hash of the tokenizer beside them.
        verified: whether both are the manifest's.
        checkpoint_path: the checkpoint's absolute path, links kept as they were given.
        output_key: `Manifest.output_key` at build time.
        lacks: tensors that the model has and the checkpoint did not.
        max_abs_error: graph against the plain numpy forward, on hidden states.
        min_cosine: likewise, the least cosine of a built-in text.
        sources: the files that the build read, the weights first; empty in earlier builds.
    """

    model_id: str
    precision: Precision
    key: str
    builder_version: int
    output_key: str
    checkpoint_sha256: str
    tokenizer_sha256: str
    verified: bool
    checkpoint_path: str
    lacks: tuple[str, ...]
    max_abs_error: float
    min_cosine: float
    files: dict[str, FileRecord]
    sources: tuple[SourceFile, ...] = ()


def read_record(path: Path) -> dict[str, object]:
    """The object in a JSON file of the store.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, or holds anything else.
    """
    found = read_json(path, RECORD_MAX_BYTES)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one kind of error for any content
    return cast("dict[str, object]", found)


def artifact_record(data: Mapping[str, object]) -> ArtifactRecord:
    """The record that an `artifact.json` holds.

    Raises:
        KeyError: a key is missing.
        ValueError: a value is of another type.
        OverflowError: a number is too large.
    """
    files = file_records(data["files"])
    precision = text(data["precision"])
    if precision not in get_args(Precision):
        raise ValueError(f"'{precision}' is not a precision")
    return ArtifactRecord(
        model_id=text(data["model_id"]),
        precision=cast("Precision", precision),
        key=text(data["key"]),
        builder_version=_integer(data["builder_version"]),
        output_key=text(data["output_key"]),
        checkpoint_sha256=text(data["checkpoint_sha256"]),
        tokenizer_sha256=text(data["tokenizer_sha256"]),
        verified=_is(data["verified"], bool),
        checkpoint_path=text(data["checkpoint_path"]),
        lacks=tuple(text(name) for name in _list(data["lacks"])),
        max_abs_error=_number(data["max_abs_error"]),
        min_cosine=_number(data["min_cosine"]),
        files=files,
        sources=tuple(_source(item) for item in _list(data.get("sources", []))),
    )


def file_records(data: object) -> dict[str, FileRecord]:
    """Size and hash of files by name; each name is that of a file in the record's own folder.

    Raises:
        KeyError: a key is missing.
        ValueError: a value is of another type, or a name leads elsewhere.
    """
    found: dict[str, FileRecord] = {}
    for name, facts in _table(data).items():
        if not name or name in (".", "..") or "/" in text(name):
            raise ValueError(f"'{name}' is not the name of a file")
        table = _table(facts)
        found[name] = FileRecord(_integer(table["bytes"]), text(table["sha256"]))
    return found


def text(value: object) -> str:
    """A string that may be a path.

    Raises:
        ValueError: the value is no string, or holds a null.
    """
    found = _is(value, str)
    if "\0" in found:
        raise ValueError("a text holds a null")
    return found


def _source(value: object) -> SourceFile:
    table = _table(value)
    stamp = tuple(_integer(number) for number in _list(table["stamp"]))
    return SourceFile(text(table["path"]), text(table["sha256"]), stamp)


def _table(value: object) -> dict[str, object]:
    return cast("dict[str, object]", _is(value, dict))


def _list(value: object) -> list[object]:
    return cast("list[object]", _is(value, list))


def _number(value: object) -> float:
    return value if isinstance(value, float) else float(_integer(value))


def _integer(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")  # noqa: TRY004 - as in `read_record`
    return _is(value, int)


def _is(value: object, kind: type[T]) -> T:
    """The value, which must be of this type."""
    if not isinstance(value, kind):
        raise ValueError(f"a value is {type(value).__name__}, but must be {kind.__name__}")  # noqa: TRY004 - as in `read_record`
    return value
