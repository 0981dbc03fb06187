"""`artifact.json` and other JSON files of the store as typed values, whatever the files hold.

Every function raises a `ValueError` for a file that holds anything else. Callers turn the error
into one that names the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, cast

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from matryo.core.choices import Precision
from matryo.core.untrusted import read_bytes, read_json
from matryo.store.limits import RECORD_MAX_BYTES
from matryo.store.sources import SourceFile

T = TypeVar("T")


def text(value: object) -> str:
    """A string that may be a path.

    Raises:
        ValueError: the value is no string, or holds a null.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a value is not a text, or holds a null")
    return value


def _own_file(name: str) -> str:
    if not name or name in (".", "..") or "/" in text(name):
        raise ValueError(f"'{name}' is not the name of a file in the record's folder")
    return name


def _plain_source(source: SourceFile) -> SourceFile:
    text(source.path)
    return source


_Text = Annotated[str, AfterValidator(text)]
_FileName = Annotated[str, AfterValidator(_own_file)]
_Source = Annotated[SourceFile, AfterValidator(_plain_source)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hash of one file as it was written."""

    bytes: int
    sha256: _Text


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
        against: what the checkpoint's own files say otherwise than the manifest, which the
            operator trusted.
        dense_sha256: hash of the file of each dense step.
        native: the interface of matryo-native that the graph uses; 0 for none.
    """

    model_id: _Text
    precision: Precision
    key: _Text
    builder_version: int
    output_key: _Text
    checkpoint_sha256: _Text
    tokenizer_sha256: _Text
    verified: bool
    checkpoint_path: _Text
    lacks: tuple[_Text, ...]
    max_abs_error: _Finite
    min_cosine: _Finite
    files: dict[_FileName, FileRecord]
    sources: tuple[_Source, ...] = ()
    against: tuple[_Text, ...] = ()
    dense_sha256: tuple[_Text, ...] = ()
    native: int = 0

    @property
    def fingerprint(self) -> str:
        """Names everything that shapes a vector of the model's own size and type."""
        native = "+native" if self.native else ""
        trusted = "+trusted" if self.against else ""
        return f"{self.model_id}/{self.precision}/{self.key}{native}{trusted}"

    @property
    def files_sha256(self) -> str:
        """Names the bytes of the artefact's files.

        Two builds of one fingerprint may differ in them: another CPU adds in another order.
        """
        lines = (f"{name} {file.sha256}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


_ARTIFACT = TypeAdapter(ArtifactRecord)
_FILES = TypeAdapter(dict[_FileName, FileRecord])


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


def read_artifact_record(path: Path) -> ArtifactRecord:
    """The record in an `artifact.json`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, or holds anything else.
    """
    return _validated(_ARTIFACT, path)


def read_file_records(path: Path) -> dict[str, FileRecord]:
    """Size and hash of files by name; each name is that of a file in the record's own folder.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, or holds anything else.
    """
    return _validated(_FILES, path)


def _validated(adapter: TypeAdapter[T], path: Path) -> T:
    """The value in a file; its error names the first fault alone."""
    try:
        return adapter.validate_json(read_bytes(path, RECORD_MAX_BYTES), strict=True)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{where}: {fault['msg']}" if where else fault["msg"]) from exc
