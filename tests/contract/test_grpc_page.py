"""The programs of docs/grpc.md run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from matryo.grpc.messages import FOLDER
from tests.contract.conftest import live_server
from tests.fakes import FakeEngine

PAGE = Path(__file__).parents[2] / "docs" / "grpc.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
PRINTED = ["768\n7 ", "(2, 256) [7 6]\n", "[768, 768]\n"]


@pytest.mark.parametrize(("program", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)))
def test_programs(engine: FakeEngine, program: str, printed: str) -> None:
    """Each program gets its vectors from a server."""
    with live_server(engine, grpc_port=0) as live:
        port = live.application.state.grpc_server.port
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program.replace(":50051", f":{port}")],
            env=os.environ | {"PYTHONPATH": str(FOLDER)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
