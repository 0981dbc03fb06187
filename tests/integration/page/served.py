"""Real servers for the page: processes of `matryo serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matryo.core.environment import load_settings
from tests.checkpoints import make_model
from tests.conftest import build_tiny

MINILM = "all-minilm-l6-v2"
_START_S = 120.0
_BUNDLED = """
import sys
from matryo.cli import main
from matryo.core.fixed import Fixed, fix
fix(Fixed(locked=frozenset((sys.argv.pop(1),))))
main()
"""


@dataclass
class Served:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    url: str

    def stop(self) -> None:
        """End it in order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


@contextmanager
def serve(
    store: dict[str, str], *arguments: str, locked: str = "", **environment: str
) -> Generator[Served, None, None]:
    """A server on a free port, or on that of `--port`, until the block ends.

    Args:
        store: the variables that name store and models.
        arguments: of `matryo serve`.
        locked: a setting that no request may change, as in a bundle.
        environment: more variables.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("MATRYO_")
    }
    command = [
        sys.executable,
        *(("-c", _BUNDLED, locked) if locked else ("-m", "matryo")),
        "serve",
        "--port",
        "0",
        "--log-format",
        "json",
        *arguments,
    ]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, env=inherited | store | environment, stderr=log)
        try:
            yield Served(process, _url(process, Path(log.name)))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + _START_S
    while not (found := re.search(r"ready: .* on (http://[^\s\"]+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return found[1]


def tiny_store(root: Path) -> dict[str, str]:
    """A store with two random models: `tiny` with prompts, the default, and `other` without."""
    build_tiny(root, make_model(root, "nomic_bert", layer_norm=True, prompts=True))
    build_tiny(root, make_model(root, "bert", model_id="other"))
    return {
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_MODELS": str(root / "models"),
        "MATRYO_MODEL": "tiny,other",
        "MATRYO_KERNELS": "onnxruntime",
    }


def minilm_store() -> dict[str, str] | None:
    """The store of this machine, if it has MiniLM; `make golden` builds it."""
    home = load_settings(None).home
    if not (home / "artifacts" / MINILM).is_dir():
        return None
    return {"MATRYO_HOME": str(home), "MATRYO_MODEL": MINILM}
