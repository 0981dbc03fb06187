"""The program of docs/batch.md runs as it is written, and the page's tables are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from matryo.batch.objects import Status
from matryo.core.settings import Settings
from tests.contract.conftest import live_server
from tests.fakes import FakeEngine

PAGE = (Path(__file__).parents[2] / "docs" / "batch.md").read_text("utf-8")
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.timeout(120)
def test_program(engine: FakeEngine, tmp_path: Path) -> None:
    """A client uploads a file, waits for its batch and reads the vectors."""
    with live_server(engine, batch=True, batch_dir=tmp_path / "batches") as live:
        program = PROGRAM.replace("127.0.0.1:8080", f"127.0.0.1:{live.port}")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "completed BatchRequestCounts(completed=2, failed=0, total=2)",
        "text-0 4096",
        "text-1 4096",
    ]


def test_settings_and_statuses() -> None:
    """Every setting of the Batch API and every status is on the page, and defaults are true."""
    for name in Settings.model_fields:
        if name == "batch" or (name.startswith("batch_") and name != "batch_ms"):
            assert f"MATRYO_{name.upper()}" in PAGE
    for status in get_args(Status):
        assert f"`{status}`" in PAGE
    fields = Settings.model_fields
    assert fields["batch_max_file_bytes"].default == 200 * 1024**2
    assert fields["batch_key_bytes"].default == 10 * 1024**3
    for name, shown in (
        ("max_lines", "50,000"), ("key_files", "1,000"), ("key_batches", "100"),
        ("retention_days", "30"), ("lease_s", "60"),
    ):  # fmt: skip
        assert fields[f"batch_{name}"].default == int(shown.replace(",", ""))
        assert shown in PAGE
