"""Which models there are, by which names, and folders that hold none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from matryo.assembly.models import load_engines
from matryo.catalog.catalog import Catalog, open_catalog, shipped_models
from matryo.core.environment import load_settings
from matryo.core.errors import ArtifactMissing, ManifestInvalid, ModelNotFound, SettingsInvalid
from tests.contract.conftest import client_of
from tests.fakes import MINILM, FakeEngine

CATALOG = Catalog([shipped_models()])


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("nomic-embed-text-v1.5", "nomic-embed-text-v1.5"),
        ("nomic-embed-text", "nomic-embed-text-v1.5"),
        ("nomic-embed-text:latest", "nomic-embed-text-v1.5"),
        ("nomic-embed-text:v1.5", "nomic-embed-text-v1.5"),
        ("text-embedding-nomic-embed-text-v1.5", "nomic-embed-text-v1.5"),
        ("NOMIC-AI/Nomic-Embed-Text-V1", "nomic-embed-text-v1"),
        ("all-minilm:latest", "all-minilm-l6-v2"),
    ],
)
def test_names(name: str, model_id: str) -> None:
    """Ids, aliases, and other servers' spellings of both."""
    assert CATALOG.manifest(name).id == model_id


@pytest.mark.parametrize("name", ["nomic-embed-text-v3", "", "text-embedding-", "v1.5", "../x"])
def test_unknown(name: str) -> None:
    """Any other name is refused, with the names that are known."""
    with pytest.raises(ModelNotFound, match="all-minilm-l6-v2"):
        CATALOG.manifest(name)


def test_shipped_names_are_of_one_model_each() -> None:
    """No two shipped models share a name."""
    manifests = [CATALOG.manifest(model_id) for model_id in CATALOG.ids]
    names = [name for m in manifests for name in {n.lower() for n in (m.id, *m.aliases)}]
    assert len(names) == len(set(names))


def test_the_folder_of_one_model(tmp_path: Path) -> None:
    """`MATRYO_MODELS` wants the parent; the model's own folder is refused, and not passed over."""
    folder = tmp_path / "all-minilm-l6-v2"
    shutil.copytree(shipped_models() / "all-minilm-l6-v2", folder)
    with pytest.raises(ManifestInvalid, match=f"name its parent, {tmp_path}"):
        open_catalog(load_settings(None, models=str(folder)))
    assert open_catalog(load_settings(None, models=str(tmp_path))).folder(folder.name) == folder


def test_a_folder_without_models(tmp_path: Path) -> None:
    """A folder that holds no model is a slip."""
    with pytest.raises(ManifestInvalid, match="holds no model"):
        open_catalog(load_settings(None, models=str(tmp_path)))


def test_a_model_named_twice(tmp_path: Path) -> None:
    """Two names of one model are one model; the store is asked for it once."""
    settings = load_settings(
        None, model="nomic-embed-text, nomic-embed-text-v1.5", home=tmp_path / "home"
    )
    with pytest.raises(ArtifactMissing, match=r"nomic-embed-text-v1\.5 is not built"):
        load_engines(settings)


async def test_a_server_knows_the_whole_catalogue() -> None:
    """A server of MiniLM refuses to answer as a model that it does not serve."""
    with pytest.raises(SettingsInvalid, match="that is a name of nomic-embed-text-v1"):
        async with client_of(FakeEngine(MINILM), aliases="nomic-embed-text-v1"):
            pass
