"""The blocks of docs/encoderfile.md, run in the order of the page.

`tests/contract/test_encoderfile_page.py` runs those that need a server and no file.
`tests/bundle_file.py` runs them all, and has the file made by the page's own command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matryo.grpc.messages import FOLDER

PAGE = Path(__file__).parents[1] / "docs" / "encoderfile.md"
MODEL = "nomic-embed-text-v1.5"

_START = "./nomic serve"


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the page.

    Attributes:
        language: `sh` or `python`.
        text: the code, without what installs packages.
    """

    language: str
    text: str

    @property
    def serves(self) -> bool:
        """Whether the block starts the server."""
        return self.text.startswith(_START)

    @property
    def needs_server(self) -> bool:
        """Whether the block asks a server."""
        return bool(re.search(r"127\.0\.0\.1|localhost", self.text))

    def at(self, port: int, grpc_port: int, dimensions: int) -> Block:
        """The block for other ports, and another size of vectors."""
        text = self.text.replace(":8080", f":{port}").replace(":50051", f":{grpc_port}")
        text = text.replace(_START, f"{_START} --port {port}")
        text = text.replace("--grpc-port 50051", f"--grpc-port {grpc_port}")
        text = text.replace("--dimensions 512", f"--dimensions {dimensions}")
        return Block(self.language, text)

    def run(self, folder: Path, environ: dict[str, str] | None = None) -> str:
        """What the block prints in a folder, with more in its environment; it must succeed."""
        matryo = f"{sys.executable} -m matryo"
        command = {
            "sh": ["sh", "-ec", re.sub(r"^matryo\b", matryo, self.text, flags=re.MULTILINE)],
            "python": [sys.executable, "-W", "ignore", "-c", self.text],
        }[self.language]
        # grpcio-tools reads the .proto files from there.
        paths = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths} | (environ or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{self.text}\n{done.stdout}{done.stderr}"
        return done.stdout


def read_page() -> Iterator[Block]:
    """The blocks of the page, in order."""
    found: list[tuple[str, str]] = re.findall(
        r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL
    )
    for language, text in found:
        yield Block(language, re.sub(r"^pip install .*\n", "", text, flags=re.MULTILINE))
