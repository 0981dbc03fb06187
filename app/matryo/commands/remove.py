"""`matryo remove`: gives back the disk that the store uses for a model."""

from __future__ import annotations

import click

from matryo.build.provision import remove_model
from matryo.catalog.catalog import open_catalog
from matryo.catalog.names import look_up
from matryo.core.errors import ModelNotFound
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.store.layout import Store


def run(settings: Settings, name: str) -> None:
    """Remove everything that the store has of a model.

    Raises:
        ModelNotFound: no model has this name, and the store has nothing under it.
        StoreUnwritable: this user may not write to the store.
    """
    store = Store(settings.home)
    model_id = look_up(name, open_catalog(settings).names) or name
    n_bytes = remove_model(store, model_id, TerminalReporter())
    if n_bytes is None:
        raise ModelNotFound(f"the store {store.home} has nothing of a model '{name[:128]}'.")
    click.echo(f"{model_id}: removed {n_bytes / 1e6:,.0f} MB from {store.home}")
