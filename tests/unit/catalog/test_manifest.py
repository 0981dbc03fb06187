"""A model is a folder, and a wrong one says what is wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from matryo.catalog.catalog import Catalog, shipped_models
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ManifestInvalid, ModelNotFound
from tests.fakes import MINILM, MODELS, NOMIC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of v1.5's folder, to be broken."""
    return Path(shutil.copytree(MODELS / NOMIC.id, tmp_path / NOMIC.id))


def edit(folder: Path, old: str, new: str) -> None:
    """Replace a piece of the manifest."""
    path = folder / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("model_id", Catalog([shipped_models()]).ids)
def test_every_shipped_model_reads(model_id: str) -> None:
    """Every folder under models/ is a valid manifest, with golden values beside it."""
    manifest = read_manifest(MODELS / model_id)
    assert manifest.output.dimensions.trained[0] == manifest.output.dimensions.native
    assert (MODELS / model_id / "golden.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("native = 768", "natve = 768", "unknown key 'output.dimensions.natve'; did you mean"),
        ("native = 768", 'native = "768"', "key 'output.dimensions.native': Input should be"),
        ("max_tokens = 8192", "", "key 'tokenizer.max_tokens' is missing; add it"),
        ("max_tokens = 8192", "max_tokens = 0", "greater than or equal to 1, got 0"),
        ('"mean_pool", "layer_norm", "truncate"', '"mean_pool", "truncate", "layer_norm"', "order"),
        ("trained = [768,", "trained = [", "trained must begin with native, 768"),
        ("trained = [768, 512, 256", "trained = [768, 256, 512", "descending"),
        ("layer_norm_eps = 1e-5\n\n", "\n\n", "both or neither"),
        ('"model.safetensors" =', '"../model.safetensors" =', "files"),
        ('"tokenizer.json" =', '"tokens.json" =', "files must list 'tokenizer.json'"),
        ("e9b6763023c676ca8431644204f50c2b100d9aab", "main", "revision"),
        ('id = "nomic-embed-text-v1.5"', 'id = "other"', "the folder is 'nomic-embed-text-v1.5'"),
        ('id = "nomic', "id = nomic", "is not TOML"),
        ('kind = "hub"', 'kind = "ftp"', "ftp"),
    ],
)
def test_faults_are_named(folder: Path, old: str, new: str, message: str) -> None:
    """A fault is answered with the file, the key, and what to do."""
    edit(folder, old, new)
    with pytest.raises(ManifestInvalid, match=re.escape(str(folder / "model.toml"))) as caught:
        read_manifest(folder)
    assert message in caught.value.message


def test_manifests_are_frozen() -> None:
    """Nobody changes a manifest once it is read."""
    with pytest.raises(ValueError, match="frozen"):
        NOMIC.id = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_prompts_and_input_types() -> None:
    """A model with prompts knows their types and `none`; one without takes them all."""
    assert NOMIC.prefix("query") == "search_query: "
    assert NOMIC.prefix("none") == ""
    assert set(NOMIC.input_types) >= {"query", "document", "clustering", "none"}
    moe = read_manifest(MODELS / "nomic-embed-text-v2-moe")
    assert moe.input_types == ("query", "document", "none")
    assert not MINILM.has_prompts
    assert "clustering" in MINILM.input_types


def test_later_folders_win(folder: Path) -> None:
    """An operator's folder replaces a shipped manifest of the same id."""
    edit(folder, "max_tokens = 8192", "max_tokens = 2048")
    catalog = Catalog([shipped_models(), folder.parent])
    assert catalog.manifest(NOMIC.id).tokenizer.max_tokens == 2048
    assert catalog.manifest(MINILM.id) == MINILM


def test_unknown_model_is_explained(tmp_path: Path) -> None:
    """A slip of the pen gets the nearest name; a missing folder is named."""
    with pytest.raises(ModelNotFound, match=r"did you mean 'all-minilm-l6-v2'\?"):
        Catalog([shipped_models()]).folder("all-minilm-l6v2")
    with pytest.raises(ManifestInvalid, match="MATRYO_MODELS"):
        Catalog([tmp_path / "nowhere"])


def test_keys_change_with_what_they_cover(folder: Path) -> None:
    """The output key follows what shapes vectors, the checkpoint key the files."""
    before = read_manifest(folder)
    edit(folder, 'owned_by = "nomic-ai"', 'owned_by = "somebody"')
    assert read_manifest(folder).output_key == before.output_key
    edit(folder, "layer_norm_eps = 1e-5", "layer_norm_eps = 1e-6")
    changed = read_manifest(folder)
    assert changed.output_key != before.output_key
    assert changed.checkpoint_key == before.checkpoint_key
    edit(folder, before.files["model.safetensors"].sha256, "0" * 64)
    assert read_manifest(folder).checkpoint_key != before.checkpoint_key
