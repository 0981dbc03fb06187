"""`matryo remove`: gives back the disk that the store uses for a model."""

from __future__ import annotations

import click

from matryo.build.provision import remove_model
from matryo.catalog.catalog import open_catalog
from matryo.catalog.names import look_up
from matryo.core.errors import ModelNotFound
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.store.derived import derived_from
from matryo.store.layout import Store
from matryo.store.references import parse_reference


def run(settings: Settings, name: str) -> None:
    """Remove everything that the store has of a model.

    Args:
        settings: name the store.
        name: id or alias of the model, or the path or repository that it was derived from.

    Raises:
        ModelNotFound: the store has nothing of a model of this name.
        StoreUnwritable: this user may not write to the store.
    """
    store = Store(settings.home)
    model_id = look_up(name, open_catalog(settings).names) or _derived(store, name) or name
    n_bytes = remove_model(store, model_id, TerminalReporter())
    if n_bytes is None:
        raise ModelNotFound(f"the store {store.home} has nothing of a model '{name[:128]}'.")
    click.echo(f"{model_id}: removed {n_bytes / 1e6:,.0f} MB from {store.home}")
    catalog = open_catalog(settings)
    if model_id in catalog.ids:
        click.echo(f"{catalog.folder(model_id) / 'model.toml'} stays")


def _derived(store: Store, name: str) -> str | None:
    """Id of the model that was derived from a path or a repository; None if there is none."""
    reference = parse_reference(name)
    return derived_from(store.home, reference.text) if reference else None
