"""A path in place of a model's id: one name for the server, the library and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from matryo import Embedder
from matryo.assembly import models as assembly
from matryo.assembly.models import referred, resolve_models
from matryo.catalog.catalog import open_catalog
from matryo.commands import add, verify
from matryo.commands.models import run as list_models
from matryo.core.environment import load_settings
from matryo.core.errors import ModelNotFound, SettingsInvalid, SetupError
from matryo.core.settings import Settings
from tests.checkpoints import TinyModel
from tests.folders import change_json, make_folder

Made = tuple[TinyModel, Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A tiny model, and the folder that it lies in."""
    return make_folder(tmp_path, prompts={"query": "search query: "})


def settings_of(tmp_path: Path, *models: str) -> Settings:
    """Settings with a store of their own."""
    return load_settings(None, home=tmp_path / "home", model=models or ("my-model",))


def never(*_: object) -> NoReturn:
    """Stand in for the process that derives and builds, where none may start."""
    raise AssertionError("a process was started")


def test_embedder(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Embedder` of a folder derives and builds once; the second reads the store alone."""
    _, folder = made
    with Embedder(str(folder), home=tmp_path / "home", input_type="query") as embedder:
        vectors = embedder.embed(["the sky is blue"])
        fingerprint = embedder.fingerprint
    assert fingerprint.startswith("my-model/fp32/")
    assert abs(float(np.linalg.norm(vectors)) - 1) < 1e-6
    monkeypatch.setattr(assembly, "_prepare_apart", never)
    with Embedder(str(folder), home=tmp_path / "home", input_type="query") as embedder:
        assert np.array_equal(embedder.embed(["the sky is blue"]), vectors)
    assert resolve_models(settings_of(tmp_path, str(folder))).model == ("my-model",)


@pytest.mark.parametrize("name", ["", "my-model"])
def test_after_a_change(tmp_path: Path, made: Made, name: str) -> None:
    """A changed file of the folder gives other vectors and another fingerprint, by path and id."""
    _, folder = made
    with Embedder(str(folder), home=tmp_path / "home") as embedder:
        one, fingerprint = embedder.embed(["grass"]), embedder.fingerprint
    change_json(folder / "1_Pooling/config.json", pooling_mode="cls")
    with Embedder(name or str(folder), home=tmp_path / "home") as embedder:
        assert not np.array_equal(embedder.embed(["grass"]), one)
        assert embedder.fingerprint != fingerprint


def test_refused_in_the_other_process(
    tmp_path: Path, made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the deriving process refuses is said once, and ends the caller with an error of ours."""
    _, folder = made
    change_json(folder / "config.json", model_type="gpt2")
    with pytest.raises(SetupError, match="could not be made ready"):
        Embedder(str(folder), home=tmp_path / "home").embed(["x"])
    assert "no graph for model_type 'gpt2'" in capfd.readouterr().err


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id or alias of a model comes before a folder of that name, unless a path is meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-minilm-l6-v2").mkdir()
    catalog = open_catalog(settings_of(tmp_path))
    assert referred(catalog, "all-minilm-l6-v2") is None
    assert referred(catalog, "nomic-ai/nomic-embed-text-v1.5") is None
    meant = referred(catalog, "./all-minilm-l6-v2")
    assert meant
    assert meant.path == tmp_path / "all-minilm-l6-v2"
    with pytest.raises(ModelNotFound, match="did you mean 'all-minilm-l6-v2'"):
        referred(catalog, "all-minilm-l6-v3")


def test_add(tmp_path: Path, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """`matryo add` writes a model.toml that is the operator's own from then on."""
    _, folder = made
    own = tmp_path / "own"
    own.mkdir()
    settings = settings_of(tmp_path).model_copy(update={"models": (str(own),)})
    add.run(settings, str(folder), "mine", "16, 8")
    path = Path(capsys.readouterr().out.strip())
    assert path == own / "mine/model.toml"
    text = path.read_text(encoding="utf-8")
    assert "trained = [32, 16, 8]" in text
    assert "# 1_Pooling/config.json: pooling_mode" in text
    path.write_text(text.replace("max_tokens = 64", "max_tokens = 60"), encoding="utf-8")
    change_json(folder / "tokenizer_config.json", model_max_length=9)
    manifest = open_catalog(settings).manifest("mine")
    assert manifest.tokenizer.max_tokens == 60
    assert manifest.folder == folder
    with pytest.raises(SettingsInvalid, match="the name of a model that there is"):
        add.run(settings, str(folder), "mine", None)


@pytest.mark.parametrize(
    ("text", "model_id", "dimensions", "message"),
    [
        ("nothing-here", None, None, "neither a folder, nor a file, nor a repository"),
        (".", "-odd-", None, "--id is '-odd-'"),
        (".", None, "16,x", "--dimensions is '16,x'"),
        (".", None, "0", "--dimensions is '0'"),
    ],
)
def test_add_refuses(
    tmp_path: Path,
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    model_id: str | None,
    dimensions: str | None,
    message: str,
) -> None:
    """A name that means nothing, an odd id and odd sizes are refused with their value."""
    monkeypatch.chdir(made[1])
    with pytest.raises(SettingsInvalid, match=message):
        add.run(settings_of(tmp_path), text, model_id, dimensions)


def test_verify_and_models(tmp_path: Path, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify` of a derived model runs its self-checks, and says that nothing was published."""
    _, folder = made
    assert verify.run(settings_of(tmp_path, str(folder)), as_json=False)
    out = capsys.readouterr().out
    assert "graph = numpy forward" in out
    assert "no published values are known" in out
    list_models(settings_of(tmp_path), as_json=False)
    out = capsys.readouterr().out
    assert f"derived from {folder}" in out
    assert "matryo serve serves my-model" in out
