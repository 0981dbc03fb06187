"""A tiny model in a store, and `matryo embed` on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from matryo.catalog.reading import read_manifest
from matryo.cli import main
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny, load_tiny
from tests.contract.conftest import Live, live_server


class Command:
    """`matryo embed` on a tiny v1.5 with prompts, built in fp32 and int8.

    Attributes:
        model: the tiny model.
        env: the variables that name its store.
    """

    def __init__(self, root: Path) -> None:
        self.model: TinyModel = make_model(
            root, "nomic_bert", layer_norm=True, prompts=True, max_tokens=120
        )
        for precision in ("fp32", "int8"):
            build_tiny(root, self.model, precision)
        self.store = Store(root / "home")
        self.env = {
            "MATRYO_HOME": str(root / "home"),
            "MATRYO_MODELS": str(self.model.models),
        }

    def __call__(self, *flags: object, text: str | bytes | None = None) -> Result:
        """Run the command in this process; `text` is its standard input."""
        arguments = ["embed", self.model.id, *map(str, flags)]
        return CliRunner().invoke(main, arguments, env=self.env, input=text)

    def start(self, *flags: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start the command in a process of its own."""
        code = [sys.executable, "-m", "matryo", "embed", self.model.id, *map(str, flags)]
        env = os.environ | self.env
        return subprocess.Popen[bytes](code, env=env, stderr=subprocess.PIPE, **options)

    def engine(self) -> Any:
        """The engine that the command uses."""
        manifest = read_manifest(self.model.models / self.model.id)
        return load_tiny(self.model, find_artifact(self.store, manifest, "fp32"))


@pytest.fixture(scope="session")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command."""
    return Command(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="session")
def live(embed: Command) -> Iterator[Live]:
    """The same model behind a server."""
    with live_server(embed.engine()) as server:
        yield server
