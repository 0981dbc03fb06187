"""`matryo models`: what can be served, and what is there already."""

from __future__ import annotations

from pathlib import Path

import click

from matryo.catalog.catalog import Catalog, open_catalog, shipped_models
from matryo.catalog.manifest import Manifest
from matryo.core.choices import PRECISIONS
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, ManifestInvalid
from matryo.core.settings import Settings
from matryo.store.artifact import find_artifact
from matryo.store.derived import read_derived
from matryo.store.files import folder_bytes
from matryo.store.layout import Store, open_store

_ROW = "{:<38} {:<8} {:>5} {:>6} {:>10} {:>9} {:<8} {}"


def run(settings: Settings) -> None:
    """Print a table of every manifest; a broken one is named, and does not hide the others."""
    catalog, store = open_catalog(settings), open_store(settings)
    click.echo(
        _ROW.format(
            "MODEL", "KIND", "DIMS", "TOKENS", "CHECKPOINT", "DISK", "VERIFIED", "ARTEFACTS"
        )
    )
    for model_id in catalog.ids:
        try:
            manifest = catalog.manifest(model_id)
        except ManifestInvalid as exc:
            click.echo(f"{model_id:<38} {exc.message}")
            continue
        click.echo(_row(catalog, store, manifest))
        if record := read_derived(catalog.folder(model_id)):
            click.echo(f"  derived from {record.reference}")
    click.echo(f"matryo serve serves {', '.join(settings.model)}, unless --model names others")


def _row(catalog: Catalog, store: Store, manifest: Manifest) -> str:
    n_bytes = sum(map(folder_bytes, store.model_folders(manifest.id)))
    return _ROW.format(
        manifest.id,
        _kind(catalog.folder(manifest.id)),
        manifest.output.dimensions.native,
        manifest.tokenizer.max_tokens,
        _checkpoint(store, manifest),
        f"{n_bytes / 1e6:,.0f} MB" if n_bytes else "-",
        "yes" if manifest.verified else "no",
        _artifacts(store, manifest) or "-",
    )


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


def _artifacts(store: Store, manifest: Manifest) -> str:
    found: list[str] = []
    for precision in PRECISIONS:
        try:
            artifact = find_artifact(store, manifest, precision)
        except (ArtifactMissing, ArtifactDamaged):
            continue
        note = "" if artifact.record.verified else ", own weights"
        note += ", lacks tensors" if artifact.record.lacks else ""
        note += ", verified" if artifact.passed_verify else ""
        found.append(f"{precision} {artifact.n_bytes / 1e6:.0f} MB{note}")
    return "; ".join(found)
