"""Arguments and options that several commands have, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from matryo.core.fixed import fixed

if TYPE_CHECKING:
    from matryo.catalog.catalog import Catalog
    from matryo.catalog.manifest import Manifest
    from matryo.core.settings import Settings

Callback = TypeVar("Callback", bound=Callable[..., Any])


def settings_from(**flags: Any) -> Settings:
    """The settings by flags, the environment and .env."""
    from matryo.core.environment import load_settings

    return load_settings(**flags)


def catalog_of(settings: Settings) -> Catalog:
    """The models that the settings know."""
    from matryo.catalog.catalog import open_catalog

    return open_catalog(settings)


precision_option = click.option(
    "--precision", help="Numbers of the model: fp32, int8, q8, q4 or auto."
)


trust_option = click.option(
    "--trust-manifest",
    is_flag=True,
    default=None,
    help="Build although the checkpoint's own files contradict model.toml.",
)


def manifest_of(settings: Settings, name: str) -> Manifest:
    """The manifest of a model, of a path, or of a repository; the latter two are derived."""
    from matryo.assembly.models import referred
    from matryo.build.provision import derive_model
    from matryo.core.progress import TerminalReporter
    from matryo.store.layout import Store

    catalog = catalog_of(settings)
    if reference := referred(catalog, name):
        folder = derive_model(Store(settings.home), catalog, reference, TerminalReporter())
        return catalog_of(settings).manifest(folder.name)
    return catalog.manifest(name)


class ModelArgument(click.Argument):
    """The id of a model, which a bundle's user need not name."""

    def make_metavar(self, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        """What a usage line calls the argument."""
        return "[ID]" if fixed().where else "ID"


class SettingOption(click.Option):
    """An option of the setting of the same name; its help names the setting's default."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The flag and its help."""
        from matryo.core.environment import default_text

        record = super().get_help_record(ctx)
        default = default_text(self.name or "") or "none"
        return record and (record[0], f"{record[1]} [default: {default}]")


def flag(flag: str, text: str, **more: Any) -> Callable[[Callback], Callback]:
    """The option of a setting.

    The value stays text: the settings check it, so that a flag and a variable get one message.
    """
    return click.option(flag, cls=SettingOption, help=text, **more)
