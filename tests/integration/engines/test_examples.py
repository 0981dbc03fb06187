"""The examples for each engine, as they are, and the programs of docs/corpus.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.engines.conftest import ROOT, check_output

PROGRAMS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "corpus.md").read_text("utf-8"), re.DOTALL
)


def run(command: list[str], folder: Path) -> None:
    """Run a program, which must succeed."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("engine", ["ray", "spark", "daft", "dask", "processes"])
def test_example(rows: Path, tmp_path: Path, engine: str) -> None:
    """Parquet in, Parquet out: every row once, its vector bit for bit, and the fingerprint."""
    program = ROOT / "examples" / f"embed_with_{engine}.py"
    run([sys.executable, str(program), str(rows), str(tmp_path / "out")], tmp_path)
    table = check_output(tmp_path / "out")
    assert "fingerprint" in table.column_names
    fixed = str(table.schema.field("embedding").type).startswith("fixed_size_list")
    assert fixed is (engine != "spark")  # Spark has no type of this kind


@pytest.mark.parametrize("code", PROGRAMS)
def test_page(rows: Path, tmp_path: Path, code: str) -> None:
    """The programs of the page run on a folder `texts`, and those of engines write `vectors`."""
    (tmp_path / "texts").symlink_to(rows)
    (tmp_path / "program.py").write_text(textwrap.dedent(code), encoding="utf-8")
    run([sys.executable, "program.py"], tmp_path)
    if "write" in code:
        check_output(tmp_path / "vectors")


def test_the_page_has_programs() -> None:
    """One counts tokens; Ray, Spark and Daft each have one."""
    words = ("count_tokens", "ray.data", "pyspark", "daft")
    assert all(word in code for word, code in zip(words, PROGRAMS, strict=True))
