"""The models that were derived from checkpoints: folders in `<home>/models`.

Beside its `model.toml`, such a folder has a `derived.json` with what the model was derived from. A
model that `matryo add` wrote has none: from then on the model.toml is the operator's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter, ValidationError

from matryo.core.untrusted import read_bytes
from matryo.store.files import write_atomically
from matryo.store.limits import RECORD_MAX_BYTES
from matryo.store.records import text
from matryo.store.sources import SourceFile, find_change

DERIVED_FILE = "derived.json"

DERIVER_VERSION = 1
"""Raised with every change of what a derivation gives; older models are derived anew."""

_Text = Annotated[str, AfterValidator(text)]


@dataclass(frozen=True, slots=True)
class DerivedRecord:
    """The content of `derived.json`.

    Attributes:
        version: `DERIVER_VERSION` at the time; 0 while the model is being written.
        reference: what the operator named; see `Reference.text`.
        sources: the files that were read, the weights first; empty for a repository, whose
            files are pinned.
        absent: files that would have counted, and were not there.
        lines: what was derived, in words.
    """

    version: int
    reference: _Text
    sources: tuple[SourceFile, ...] = ()
    absent: tuple[_Text, ...] = ()
    lines: tuple[_Text, ...] = ()


_RECORD = TypeAdapter(DerivedRecord)


def models_folder(home: Path) -> Path:
    """The folder of the derived models; may not exist."""
    return home / "models"


def write_derived(folder: Path, record: DerivedRecord) -> None:
    """Write `derived.json`, the last file of a derivation."""
    write_atomically(folder / DERIVED_FILE, json.dumps(asdict(record), indent=1))


def read_derived(folder: Path) -> DerivedRecord | None:
    """What a model was derived from, by any version; None if the model was not derived."""
    try:
        content = read_bytes(folder / DERIVED_FILE, RECORD_MAX_BYTES)
        return _RECORD.validate_json(content, strict=True)
    except (OSError, ValueError, ValidationError):
        return None


def find_derived(home: Path, reference: str) -> str | None:
    """Id of the model that was derived from a reference; None if there is none, or no longer.

    A model no longer counts if a file that it was derived from has changed, come or gone. If the
    whole checkpoint is gone, nothing contradicts the model.
    """
    for folder, record in derived_models(home):
        if record.reference != reference:
            continue
        if record.version != DERIVER_VERSION:
            return None
        if record.sources and os.path.lexists(reference):
            if find_change(record.sources):
                return None
            if not all(os.path.lexists(source.path) for source in record.sources):
                return None
            if any(Path(path).exists() for path in record.absent):
                return None
        return folder.name
    return None


def derived_from(home: Path, reference: str) -> str | None:
    """Id of the model that was derived from a reference, whatever has changed since; or None."""
    found = (
        folder.name for folder, record in derived_models(home) if record.reference == reference
    )
    return next(found, None)


def derived_models(home: Path) -> Iterator[tuple[Path, DerivedRecord]]:
    """The folder of every derived model, and its record."""
    for path in sorted(models_folder(home).glob(f"*/{DERIVED_FILE}")):
        if (path.parent / "model.toml").is_file() and (record := read_derived(path.parent)):
            yield path.parent, record
