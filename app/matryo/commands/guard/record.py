"""The file that a user keeps beside an index: what made its vectors, and vectors of fixed texts."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matryo.commands.guard.facts import Asked, Facts
from matryo.core.errors import InvalidRequest
from matryo.core.untrusted import read_json, reason_of
from matryo.engine.postprocess import FloatArray
from matryo.store.files import write_atomically

VERSION = 1
_SLASHES = 5  # of a whole fingerprint
_MAX_BYTES = 32 << 20  # seven texts in ten input types of 4,096 numbers are 2 MB
_MAX_TEXTS, _MAX_CHARS = 64, 1 << 16

_Text = Annotated[str, Field(min_length=1, max_length=_MAX_CHARS)]
_Word = Annotated[str, Field(max_length=4096)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Origin(_Table):
    """Where the vectors of an index come from, and what its requests named.

    Attributes:
        url: base URL of the server, without a password; None for the model on this machine.
        model: its name there; None for the default.
        precision: that the command named for the model on this machine; None for the settings'.
        input_type: that the requests named; None where they named none.
        dimensions: likewise.
        embedding_type: type of the numbers.
    """

    url: _Word | None = None
    model: _Word | None = None
    precision: _Word | None = None
    input_type: _Word | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    embedding_type: _Word = "float"


class _Content(_Table):
    matryo_guard: int
    recorded: _Word
    asked: Origin
    fingerprint: _Word | None
    model: Facts | None
    texts: Annotated[list[_Text], Field(min_length=1, max_length=_MAX_TEXTS)]
    vectors: Annotated[dict[_Word, str], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Record:
    """What a record says.

    Attributes:
        recorded: the moment, such as `2026-11-27T12:00:00Z`.
        origin: where the vectors come from.
        fingerprint: of the vectors of the index; None where the server gives none.
        facts: of the model; None for a server that gives none.
        texts: whose vectors are kept.
        vectors: `(n, D)` of these texts by input type; of a server without facts, under the input
            type that the requests named, or `none`.
    """

    recorded: str
    origin: Origin
    fingerprint: str | None
    facts: Facts | None
    texts: Sequence[str]
    vectors: Mapping[str, FloatArray]

    @property
    def asked(self) -> Asked:
        """What requests for the index name, with the model's own name of the input type.

        A suffix of the model's name, such as `-query`, names an input type, too.
        """
        origin = self.origin
        named = origin.input_type
        if self.facts and self.fingerprint:
            chosen = self.fingerprint.split("/")[-3]
            by_name = (origin.model or "").lower().endswith(f"-{chosen}")
            if named or by_name or chosen != self.facts.input_type(None):
                named = chosen if self.facts.prompts else named
        return Asked(named, origin.dimensions, origin.embedding_type)

    @property
    def input_type(self) -> str:
        """The input type of the vectors of the index, as `vectors` names it."""
        if self.facts:
            return self.facts.input_type(self.asked.input_type)
        return next(iter(self.vectors))


def write_record(path: Path, record: Record) -> None:
    """Write the file whole.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "matryo_guard": VERSION,
        "recorded": record.recorded,
        "asked": record.origin.model_dump(),
        "fingerprint": record.fingerprint,
        "model": record.facts.model_dump() if record.facts else None,
        "texts": list(record.texts),
        "vectors": {
            name: base64.b64encode(rows.astype("<f4").tobytes()).decode()
            for name, rows in record.vectors.items()
        },
    }
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a file that `write_record` wrote.

    Raises:
        InvalidRequest: the file cannot be read, or holds anything else.
    """
    try:
        found = read_json(path, _MAX_BYTES)
    except OSError as exc:
        raise InvalidRequest(
            f"{path}: cannot be read: {exc.strerror or exc}. matryo guard record writes the file"
        ) from exc
    except ValueError as exc:
        raise _damaged(path, reason_of(exc)) from exc
    version = cast("dict[str, Any]", found).get("matryo_guard") if isinstance(found, dict) else None
    if type(version) is not int:
        raise InvalidRequest(
            f"{path}: not a record of an index: it has no number 'matryo_guard'. Name the file "
            "that matryo guard record wrote"
        )
    if version != VERSION:
        raise InvalidRequest(
            f"{path}: a record of version {version}, and this Matryo reads version {VERSION}. "
            "Check with the Matryo that wrote the file, or a later one"
        )
    try:
        content = _Content.model_validate_json(json.dumps(found))
        vectors = {
            name: _matrix(text, len(content.texts)) for name, text in content.vectors.items()
        }
    except ValidationError as exc:
        raise _damaged(path, _first_fault(exc)) from exc
    except ValueError as exc:
        raise _damaged(path, reason_of(exc)) from exc
    record = Record(
        content.recorded,
        content.asked,
        content.fingerprint,
        content.model,
        content.texts,
        vectors,
    )
    if fault := fault_of(record):
        raise _damaged(path, fault)
    return record


def fault_of(record: Record) -> str | None:
    """Why the parts of a record do not belong together; None if they do."""
    facts, fingerprint = record.facts, record.fingerprint
    if facts and not (fingerprint and fingerprint.startswith(f"{facts.fingerprint}/")):
        return "the fingerprint is not that of the model"
    if fingerprint is not None and fingerprint.count("/") < _SLASHES:
        return "the fingerprint has too few parts"
    if facts and (kind := facts.shaping(record.input_type)) not in record.vectors:
        return f"the vectors of '{kind}', which the index has, are missing"
    return None


def _matrix(text: str, n_texts: int) -> FloatArray:
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise ValueError(f"vectors are no base64: {exc}") from exc
    if not content or len(content) % (4 * n_texts):
        raise ValueError(f"{len(content)} bytes are no vectors of {n_texts} texts")
    rows = np.frombuffer(content, "<f4").astype(np.float32).reshape(n_texts, -1)
    if not (np.isfinite(rows).all() and rows.any(axis=1).all()):
        raise ValueError("vectors of zeros, or not finite")
    return rows


def _first_fault(exc: ValidationError) -> str:
    """The first fault of a record, in a line."""
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    return reason_of(ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))


def _damaged(path: Path, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path}: a damaged record: {reason}. Take the file from a backup; a new record says "
        "nothing of an older index"
    )
