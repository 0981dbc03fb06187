"""`matryo models`: what can be served, and what is there already."""

from __future__ import annotations

import click

from matryo.catalog.catalog import open_catalog
from matryo.catalog.manifest import Manifest
from matryo.core.choices import PRECISIONS
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, ManifestInvalid
from matryo.core.settings import Settings
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store

_ROW = "{:<30} {:>4} {:>6} {:<10} {:<8} {}"


def run(settings: Settings) -> None:
    """Print a table of every manifest; a broken one is named, and does not hide the others."""
    catalog, store = open_catalog(settings), Store(settings.home)
    click.echo(_ROW.format("MODEL", "DIMS", "TOKENS", "CHECKPOINT", "VERIFIED", "ARTEFACTS"))
    for model_id in catalog.ids:
        try:
            manifest = catalog.manifest(model_id)
        except ManifestInvalid as exc:
            click.echo(f"{model_id:<30} {exc.message}")
            continue
        click.echo(
            _ROW.format(
                model_id,
                manifest.output.dimensions.native,
                manifest.tokenizer.max_tokens,
                "here" if store.checkpoint(model_id, manifest.checkpoint_key).is_dir() else "-",
                "yes" if manifest.verified else "no",
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
        note = "" if artifact.record.verified else ", own weights"
        note += ", lacks tensors" if artifact.record.lacks else ""
        note += ", verified" if artifact.passed_verify else ""
        found.append(f"{precision} {artifact.n_bytes / 1e6:.0f} MB{note}")
    return "; ".join(found)
