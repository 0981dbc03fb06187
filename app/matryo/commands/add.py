"""`matryo add`: a model folder for a checkpoint, from the checkpoint's own files."""

from __future__ import annotations

from pathlib import Path

import click

from matryo.build.derive.files import read_layout
from matryo.build.derive.write import Target, check_id, choose_id, reference_name
from matryo.build.provision import derive_model
from matryo.catalog.catalog import open_catalog
from matryo.catalog.names import look_up
from matryo.core.errors import SettingsInvalid
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.store.derived import models_folder
from matryo.store.layout import Store
from matryo.store.references import Reference, parse_reference


def run(settings: Settings, text: str, model_id: str | None, dimensions: str | None) -> None:
    """Write the model folder of a checkpoint, and print the path of its `model.toml`.

    Raises:
        SettingsInvalid: the text names no checkpoint, or the id is taken or no id.
        SetupError: the checkpoint cannot be read.
    """
    reference = parse_reference(text)
    if reference is None:
        raise SettingsInvalid(
            f"{text} is neither a folder, nor a file, nor a repository. Give the path of a "
            "checkpoint, or org/name."
        )
    store = Store(settings.home)
    # The first model of a folder is added to an empty one.
    filled = tuple(name for name in settings.models if any(_folder(name).glob("*/model.toml")))
    catalog = open_catalog(settings.model_copy(update={"models": filled}))
    chosen = (
        check_id(model_id) if model_id else choose_id(store, catalog, _name(reference), reference)
    )
    if model_id and look_up(chosen, catalog.names) is not None:
        raise SettingsInvalid(
            f"--id {chosen} is the name of a model that there is. Give another id, or run first: "
            f"matryo remove {chosen}"
        )
    parent = _folder(settings.models[0]) if settings.models else models_folder(store.home)
    target = Target(parent, chosen, _sizes(dimensions), is_own=True)
    folder = derive_model(store, catalog, reference, TerminalReporter(), target=target)
    click.echo(folder / "model.toml")


def _folder(name: str) -> Path:
    """A folder of MATRYO_MODELS."""
    return Path(name).expanduser()


def _name(reference: Reference) -> str:
    if reference.path is None:
        return reference.repo.rpartition("/")[2]
    return reference_name(read_layout(reference.path), reference)


def _sizes(dimensions: str | None) -> tuple[int, ...]:
    if dimensions is None:
        return ()
    parts = [part.strip() for part in dimensions.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 1 << 22 for part in parts):
        raise SettingsInvalid(
            f"--dimensions is {dimensions[:80]!r}, but must be numbers of 1 or more with commas "
            "between them, such as 768,512,256."
        )
    return tuple(sorted({int(part) for part in parts}, reverse=True))
