"""Tiny models that differ in one thing each, built, and servers of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from matryo.catalog.reading import read_manifest
from matryo.cli import main
from matryo.store.artifact import find_artifact
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model, save_tensors
from tests.conftest import build_tiny, load_tiny
from tests.contract.conftest import Live, live_server


@dataclass
class Built:
    """A tiny model in a store of its own.

    Attributes:
        root: of the store and the model folder.
        model: the model.
    """

    root: Path
    model: TinyModel

    @property
    def env(self) -> dict[str, str]:
        """The variables that name model and store."""
        return {
            "MATRYO_HOME": str(self.root / "home"),
            "MATRYO_MODELS": str(self.model.models),
            "MATRYO_MODEL": self.model.id,
        }

    def engine(self, precision: Any = "fp32") -> Any:
        """The engine of a build."""
        manifest = read_manifest(self.model.models / self.model.id)
        return load_tiny(self.model, find_artifact(Store(self.root / "home"), manifest, precision))

    def serve(self, precision: Any = "fp32", **changes: Any) -> AbstractContextManager[Live]:
        """A server of the model."""
        return live_server(self.engine(precision), **changes)

    def guard(self, *words: object, **env: str) -> Result:
        """`matryo guard` with this model's settings."""
        arguments = ["guard", *map(str, words)]
        return CliRunner().invoke(main, arguments, env=self.env | env)

    def check(self, record: Path, *flags: object, **env: str) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of a check."""
        done = self.guard("check", record, "--json", *flags, **env)
        assert done.stdout, done.stderr
        return done.exit_code, json.loads(done.stdout)


def kinds_of(found: dict[str, Any]) -> list[str]:
    """The kinds of the causes of a finding."""
    return [cause["kind"] for cause in found["causes"]]


Edit = Callable[[str], str]


def build(
    root: Path,
    edit: Edit = str,
    *,
    noise: float = 0,
    precisions: tuple[Any, ...] = ("fp32",),
    **options: Any,
) -> Built:
    """Build a tiny v1.5.

    Args:
        root: a new folder.
        edit: changes the text of `model.toml`.
        noise: standard deviation of what is added to every weight.
        precisions: to build in.
        options: of `make_model`.
    """
    chosen: dict[str, Any] = {"layer_norm": True, "prompts": True, "max_tokens": 400}
    model = make_model(root, "nomic_bert", **chosen | options)
    manifest = model.models / model.id / "model.toml"
    weights = model.checkpoint / "model.safetensors"
    text = manifest.read_text("utf-8")
    if noise:
        rng = np.random.default_rng(1)
        tensors = {
            name: (tensor + noise * rng.standard_normal(tensor.shape)).astype(np.float32)
            for name, tensor in model.tensors.items()
        }
        before = sha256_file(weights)
        save_tensors(tensors, weights)
        text = text.replace(before, sha256_file(weights))
    manifest.write_text(edit(text), "utf-8")
    for precision in precisions:
        build_tiny(root, model, precision)
    return Built(root, model)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The model of the index, in fp32 and int8."""
    return build(tmp_path_factory.mktemp("plain"), precisions=("fp32", "int8"))


@pytest.fixture
def record(plain: Built, tmp_path: Path) -> Path:
    """A record of this machine's model."""
    path = tmp_path / "index.json"
    done = plain.guard("record", path)
    assert done.exit_code == 0, done.stderr
    assert re.search(r"tiny/fp32/[0-9a-f]{16}/document/32/float", done.stdout)
    return path
