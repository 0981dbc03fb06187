"""`matryo models`: what can be served, and what is there already."""

from __future__ import annotations

import click

from app.core.errors import ArtifactDamaged, ArtifactMissing, ManifestInvalid
from app.core.manifest import PRECISIONS, Catalog, Manifest
from app.core.settings import Settings
from app.graph.artifact import find_artifact
from app.graph.store import Store

_ROW = "{:<26} {:>6} {:>7} {:<10} {}"


def run(settings: Settings) -> None:
    """Print a table of every manifest; a broken one is named, and does not hide the others."""
    catalog, store = Catalog(settings.model_folders), Store(settings.home)
    click.echo(_ROW.format("MODEL", "DIMS", "TOKENS", "CHECKPOINT", "ARTEFACTS"))
    for model_id in catalog.ids:
        try:
            manifest = catalog.manifest(model_id)
        except ManifestInvalid as exc:
            click.echo(f"{model_id:<26} {exc.message}")
            continue
        click.echo(
            _ROW.format(
                model_id,
                manifest.output.dimensions.native,
                manifest.tokenizer.max_tokens,
                "here" if store.checkpoint(model_id, manifest.checkpoint_key).is_dir() else "-",
                _artifacts(store, manifest) or "-",
            )
        )


def _artifacts(store: Store, manifest: Manifest) -> str:
    found: list[str] = []
    for precision in PRECISIONS:
        try:
            artifact = find_artifact(store, manifest, precision)
        except (ArtifactMissing, ArtifactDamaged):
            continue
        note = "" if artifact.record.verified else ", unverified"
        found.append(f"{precision} {artifact.n_bytes / 1e6:.0f} MB{note}")
    return "; ".join(found)
