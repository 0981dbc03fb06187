"""Which models there are: the shipped folders and the operator's, by id."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from matryo.catalog.manifest import Manifest
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ManifestInvalid, ModelNotFound
from matryo.core.settings import Settings


class Catalog:
    """The manifests of every model folder, by id.

    Args:
        folders: folders of model folders; where two hold the same id, the later wins,
            so that an operator can replace a shipped manifest.
        rotary_scaling_factor: in place of the manifests' own, for models that have one.
    """

    def __init__(self, folders: Sequence[Path], rotary_scaling_factor: float | None = None) -> None:
        self._rotary_scaling_factor = rotary_scaling_factor
        self._folders: dict[str, Path] = {}
        for root in folders:
            if not root.is_dir():
                raise ManifestInvalid(
                    f"{root}: no such folder of models; check MATRYO_MODELS, which lists "
                    "folders that hold one folder for each model"
                )
            for path in sorted(root.glob("*/model.toml")):
                self._folders[path.parent.name] = path.parent

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id, sorted."""
        return tuple(sorted(self._folders))

    def folder(self, model_id: str) -> Path:
        """The folder of `model_id`.

        Raises:
            ModelNotFound: no folder has this name.
        """
        if model_id not in self._folders:
            near = difflib.get_close_matches(model_id, self.ids, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ModelNotFound(
                f"no model '{model_id}': {hint}known: {', '.join(self.ids)}. "
                "Add a folder with a model.toml and name its parent in MATRYO_MODELS."
            )
        return self._folders[model_id]

    def manifest(self, model_id: str) -> Manifest:
        """The manifest of `model_id`.

        Raises:
            ModelNotFound: no folder has this name.
            ManifestInvalid: its `model.toml` is not a manifest.
        """
        manifest = read_manifest(self.folder(model_id))
        return manifest.stretched(self._rotary_scaling_factor)


def shipped_models() -> Path:
    """The folder of the models that come with Matryo, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent.parent / "models"


def open_catalog(settings: Settings) -> Catalog:
    """The shipped models and those of `MATRYO_MODELS`.

    Raises:
        ManifestInvalid: a folder of `MATRYO_MODELS` does not exist.
    """
    own = (Path(folder).expanduser() for folder in settings.models)
    return Catalog((shipped_models(), *own), settings.rotary_scaling_factor)
