"""The hashes that the first pull of an unpinned model found: `<home>/pins/<id>.json`.

A shipped folder may name the revision of a model whose hashes nobody has published. The first pull
writes the hashes down. From then on the model is pinned as any other, on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matryo.catalog.manifest import CheckpointFile, Manifest
from matryo.core.errors import ManifestInvalid
from matryo.core.untrusted import read_bytes

PINS_MAX_BYTES = 1 << 20
"""Most bytes of a file of pins; one file of a checkpoint takes about 120."""


class Pins(BaseModel):
    """The content of a file of pins.

    Attributes:
        revision: the commit on the hub that the files are from.
        files: size and hash of each file, by its name in the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    files: Mapping[str, CheckpointFile]


def pins_path(home: Path, model_id: str) -> Path:
    """The file of the pins of a model; may not exist."""
    return home / "pins" / f"{model_id}.json"


def pinned(manifest: Manifest, home: Path) -> Manifest:
    """The model with the hashes of its first pull, if the model was pulled and needs them.

    Raises:
        ManifestInvalid: the file of pins cannot be read.
    """
    if manifest.is_pinned or manifest.hub is None:
        return manifest
    path = pins_path(home, manifest.id)
    try:
        pins = Pins.model_validate_json(read_bytes(path, PINS_MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return manifest
    except (OSError, ValueError, ValidationError) as exc:
        raise ManifestInvalid(
            f"{path} cannot be read: {exc}. Remove the file; the next pull writes it anew."
        ) from exc
    if pins.revision != manifest.hub.revision:
        return manifest
    return manifest.with_pins(pins.files)
