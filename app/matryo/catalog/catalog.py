"""Which models there are: the shipped folders and the operator's, by id."""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matryo.catalog.manifest import Manifest
from matryo.catalog.names import look_up
from matryo.catalog.pins import pinned
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ManifestInvalid, ModelNotFound
from matryo.core.settings import Settings


class Catalog:
    """The manifests of every model folder, by id.

    Args:
        folders: folders of model folders; where two hold the same id, the later wins,
            so that an operator can replace a shipped manifest.
        rotary_scaling_factor: in place of the manifests' own, for models that have one.
        home: the store, which holds hashes that were found at a first pull; None for no store.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        rotary_scaling_factor: float | None = None,
        home: Path | None = None,
    ) -> None:
        self._rotary_scaling_factor = rotary_scaling_factor
        self._home = home
        self._folders: dict[str, Path] = {}
        for root in folders:
            if not root.is_dir():
                raise ManifestInvalid(
                    f"{root}: no such folder of models; check MATRYO_MODELS, which lists "
                    "folders that hold one folder for each model"
                )
            if (root / "model.toml").is_file():
                raise ManifestInvalid(
                    f"{root}: is the folder of one model, but MATRYO_MODELS lists folders that "
                    f"hold one folder for each model; name its parent, {root.parent}"
                )
            found = sorted(root.glob("*/model.toml"))
            if not found:
                raise ManifestInvalid(
                    f"{root}: holds no model; each model is a folder in it with a model.toml. "
                    "Check MATRYO_MODELS"
                )
            for path in found:
                self._folders[path.parent.name] = path.parent

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id, sorted."""
        return tuple(sorted(self._folders))

    @functools.cached_property
    def names(self) -> Mapping[str, str]:
        """Every id and every alias, in lower case, and the id that it stands for.

        An id stands for itself, whatever the aliases of other models say. A manifest that cannot
        be read has no aliases.
        """
        aliases: dict[str, str] = {}
        for model_id, folder in self._folders.items():
            with contextlib.suppress(ManifestInvalid):
                for alias in read_manifest(folder).aliases:
                    aliases.setdefault(alias.lower(), model_id)
        return aliases | {model_id.lower(): model_id for model_id in self._folders}

    def find(self, name: str) -> str | None:
        """The id of a model, by any of its names; see `folder`. None if no model has the name."""
        # The names are those of all manifests, which take a while to read.
        return name if name in self._folders else look_up(name, self.names)

    def folder(self, name: str) -> Path:
        """The folder of a model, by its id, an alias, or another server's spelling of either.

        Raises:
            ModelNotFound: no model has this name.
        """
        model_id = self.find(name)
        if model_id is None:
            near = difflib.get_close_matches(name, self.ids, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ModelNotFound(
                f"no model '{name}': {hint}known: {', '.join(self.ids)}. "
                "Add a folder with a model.toml and name its parent in MATRYO_MODELS."
            )
        return self._folders[model_id]

    def manifest(self, name: str) -> Manifest:
        """The manifest of a model, by any of its names; see `folder`.

        Raises:
            ModelNotFound: no model has this name.
            ManifestInvalid: its `model.toml` is not a manifest.
        """
        manifest = read_manifest(self.folder(name))
        if self._home:
            manifest = pinned(manifest, self._home)
        return manifest.stretched(self._rotary_scaling_factor)


def shipped_models() -> Path:
    """The folder of the models that come with Matryo, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent.parent / "models"


def open_catalog(settings: Settings) -> Catalog:
    """The shipped models, those that were derived into the store, and those of `MATRYO_MODELS`.

    Raises:
        ManifestInvalid: a folder of `MATRYO_MODELS` does not exist.
    """
    own = (Path(folder).expanduser() for folder in settings.models)
    derived = settings.home / "models"  # those that were derived from checkpoints
    stored = (derived,) if any(derived.glob("*/model.toml")) else ()
    folders = (shipped_models(), *stored, *own)
    return Catalog(folders, settings.rotary_scaling_factor, settings.home)
