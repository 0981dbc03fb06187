"""`matryo models`: what can be served, and what is there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from matryo.catalog.catalog import Catalog, open_catalog, shipped_models
from matryo.catalog.manifest import Manifest
from matryo.commands.table import Cell, Column, draw_table, draws_tables
from matryo.core.choices import PRECISIONS
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, ManifestInvalid, SettingsInvalid
from matryo.core.settings import Settings
from matryo.store.artifact import find_artifact
from matryo.store.derived import read_derived
from matryo.store.files import folder_bytes
from matryo.store.layout import Store, open_store

_ROW = "{:<38} {:<8} {:>5} {:>6} {:>10} {:>9} {:<8} {}"
_HEAD = ("MODEL", "KIND", "DIMS", "TOKENS", "CHECKPOINT", "DISK", "VERIFIED", "ARTEFACTS")
_COLUMNS = (
    Column("model", is_whole=True),
    Column("state", is_whole=True),
    Column("dims", is_number=True, is_optional=True),
    Column("tokens", is_number=True, is_optional=True),
    Column("built"),
    Column("disk", is_number=True, is_optional=True),
    Column("checkpoint", is_optional=True),
    Column("kind", is_optional=True),
    Column("verified", is_optional=True),
)
_STYLES = {"ready": "bold green", "to build": "yellow", "to fetch": "dim"}


@dataclass(frozen=True, slots=True)
class _Built:
    """An artefact of a model, as `--json` gives it.

    Attributes:
        published: built from the files that the manifest pins.
        lacks: tensors that the checkpoint lacked.
        verified: `matryo verify` has passed on it.
    """

    precision: str
    fingerprint: str
    bytes: int
    published: bool
    lacks: tuple[str, ...]
    verified: bool

    @property
    def words(self) -> str:
        """The artefact in a table."""
        note = "" if self.published else ", own weights"
        note += ", lacks tensors" if self.lacks else ""
        note += ", verified" if self.verified else ""
        return f"{self.precision} {self.bytes / 1e6:.0f} MB{note}"


@dataclass(frozen=True, slots=True)
class _Model:
    """A model of the catalogue, as `--json` gives it.

    Attributes:
        kind: `shipped`, `derived` from a checkpoint, or the operator's `own`.
        state: `ready` to serve by the settings; `to build` from a checkpoint that is here;
            `to fetch` from a source first; or why the model cannot be served by the settings.
        checkpoint: `here`, `in place` in a folder of the operator, `gone` from there, or `-`.
        bytes: on disk in the store, checkpoint and artefacts together.
        verified: the model was verified before it was shipped.
        derived_from: path or repository; None for a model that was not derived.
    """

    id: str
    kind: str
    state: str
    dimensions: int
    trained: tuple[int, ...]
    max_tokens: int
    precisions: tuple[str, ...]
    checkpoint: str
    bytes: int
    verified: bool
    derived_from: str | None
    built: tuple[_Built, ...]

    @property
    def disk(self) -> str:
        """The bytes in a table."""
        return f"{self.bytes / 1e6:,.0f} MB" if self.bytes else "-"


def run(settings: Settings, *, as_json: bool) -> None:
    """Print every manifest; a broken one is named, and does not hide the others.

    Args:
        settings: as for a server.
        as_json: print one JSON object in place of a table.
    """
    catalog, store = open_catalog(settings), open_store(settings)
    models: list[_Model] = []
    broken: dict[str, str] = {}
    for model_id in catalog.ids:
        try:
            manifest = catalog.manifest(model_id)
        except ManifestInvalid as exc:
            broken[model_id] = exc.message
        else:
            models.append(_facts(settings, catalog, store, manifest))
    if as_json:
        click.echo(json.dumps(_object(settings, models, broken), indent=1, ensure_ascii=False))
        return
    if draws_tables():
        _draw(models, broken)
    else:
        _print(catalog.ids, models, broken)
    click.echo(f"matryo serve serves {', '.join(settings.model)}, unless --model names others")


def _object(settings: Settings, models: Sequence[_Model], broken: dict[str, str]) -> dict[str, Any]:
    faults = [{"id": model_id, "error": message} for model_id, message in broken.items()]
    return {
        "serves": list(settings.model),
        "models": [asdict(model) for model in models],
        "broken": faults,
    }


def _print(ids: Sequence[str], models: Sequence[_Model], broken: dict[str, str]) -> None:
    """Aligned text, for pipes."""
    known = {model.id: model for model in models}
    click.echo(_ROW.format(*_HEAD))
    for model_id in ids:
        if model_id in broken:
            click.echo(f"{model_id:<38} {broken[model_id]}")
            continue
        model = known[model_id]
        click.echo(
            _ROW.format(
                model.id,
                model.kind,
                model.dimensions,
                model.max_tokens,
                model.checkpoint,
                model.disk,
                "yes" if model.verified else "no",
                "; ".join(built.words for built in model.built) or "-",
            )
        )
        if model.derived_from:
            click.echo(f"  derived from {model.derived_from}")


def _draw(models: Sequence[_Model], broken: dict[str, str]) -> None:
    """A table on a terminal."""
    rows: list[list[Cell]] = []
    for model in models:
        is_ready = model.state == "ready"
        rows.append(
            [
                (model.id, "bold" if is_ready else ""),
                (model.state, _STYLES.get(model.state, "red")),
                str(model.dimensions),
                str(model.max_tokens),
                "\n".join(built.words for built in model.built),
                model.disk,
                model.checkpoint,
                model.kind,
                "yes" if model.verified else "no",
            ]
        )
    draw_table(_COLUMNS, rows)
    for model in models:
        if model.derived_from:
            click.echo(f"{model.id} is derived from {model.derived_from}")
    for model_id, message in broken.items():
        click.secho(f"{model_id} is broken: {message}", fg="red")


def _facts(settings: Settings, catalog: Catalog, store: Store, manifest: Manifest) -> _Model:
    folder = catalog.folder(manifest.id)
    record = read_derived(folder)
    checkpoint = _checkpoint(store, manifest)
    built = _built(store, manifest)
    return _Model(
        id=manifest.id,
        kind=_kind(folder),
        state=_state(settings, manifest, checkpoint, built),
        dimensions=manifest.output.dimensions.native,
        trained=manifest.output.dimensions.trained,
        max_tokens=manifest.tokenizer.max_tokens,
        precisions=tuple(manifest.precisions),
        checkpoint=checkpoint,
        bytes=sum(map(folder_bytes, store.model_folders(manifest.id))),
        verified=manifest.verified,
        derived_from=record.reference if record else None,
        built=built,
    )


def _state(settings: Settings, manifest: Manifest, checkpoint: str, built: Sequence[_Built]) -> str:
    """Whether `matryo serve` would serve the model at once."""
    try:
        precision = manifest.precision_for(settings.precision)
    except SettingsInvalid:
        return f"not in {settings.precision}"
    if any(one.precision == precision for one in built):
        return "ready"
    return {"gone": "gone", "-": "to fetch"}.get(checkpoint, "to build")


def _kind(folder: Path) -> str:
    """Whether a model is shipped, derived from a checkpoint, or the operator's own."""
    if folder.parent == shipped_models():
        return "shipped"
    return "derived" if read_derived(folder) else "own"


def _checkpoint(store: Store, manifest: Manifest) -> str:
    """Where the model's files are: pulled, in a folder of the operator, or not on this machine."""
    if manifest.folder:
        return "in place" if manifest.folder.is_dir() else "gone"
    return "here" if store.checkpoint(manifest.id, manifest.checkpoint_key).is_dir() else "-"


def _built(store: Store, manifest: Manifest) -> tuple[_Built, ...]:
    found: list[_Built] = []
    for precision in PRECISIONS:
        try:
            artifact = find_artifact(store, manifest, precision)
        except (ArtifactMissing, ArtifactDamaged):
            continue
        record = artifact.record
        found.append(
            _Built(
                precision,
                record.fingerprint,
                artifact.n_bytes,
                record.verified,
                record.lacks,
                artifact.passed_verify,
            )
        )
    return tuple(found)
