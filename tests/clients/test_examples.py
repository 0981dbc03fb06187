"""Programs that people start from: examples/ and the README's code run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Live, live_server
from tests.fakes import MINILM, FakeEngine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CURLS = re.findall(r"^curl http.*?(?<!\\)$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def open_server(engine: FakeEngine) -> Iterator[Live]:
    """The fake v1.5 and a fake MiniLM, open to all, as `make run` has it."""
    with live_server([engine, FakeEngine(MINILM)]) as server:
        yield server


def run(command: list[str], folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rag(live: Live, question: str, model: str) -> dict[str, list[str]]:
    """The lines of each index of examples/rag.py."""
    command = [sys.executable, "examples/rag.py", "examples/documents", question]
    shown = run([*command, "--base-url", f"{live.url}/v1", "--model", model], ROOT)
    kinds = re.split(r"^(\w+) index: .*$", shown, flags=re.MULTILINE)[1:]
    return {
        kind: lines.split("\n")[1:-1] for kind, lines in zip(kinds[::2], kinds[1::2], strict=True)
    }


def test_rag(open_server: Live) -> None:
    """Documents go in, and the one that is asked for comes out of both indexes first."""
    # The fake model knows no meaning, only the very words, and MiniLM no prefixes.
    question = (
        "Compost: If compost smells of ammonia there is too much green in it; turn it and mix in "
        "torn cardboard."
    )
    found = rag(open_server, question, MINILM.id)
    assert list(found) == ["float", "binary"]
    for lines in found.values():
        assert len(lines) == 3
        assert "[garden.md] Compost: If compost smells" in lines[0]
    assert found["float"][0].strip().startswith("1.000")


@pytest.mark.parametrize("code", PYTHON)
def test_readme_python(open_server: Live, code: str, tmp_path: Path) -> None:
    """Each Python block of the README, on another port."""
    assert re.search(r"(127\.0\.0\.1|localhost):8080", code)
    code = re.sub(r"(127\.0\.0\.1|localhost):8080", f"127.0.0.1:{open_server.port}", code)
    path = tmp_path / "block.py"
    path.write_text(code)
    run([sys.executable, str(path)], tmp_path)


@pytest.mark.parametrize("command", CURLS)
def test_readme_curl(open_server: Live, command: str, tmp_path: Path) -> None:
    """Each curl of the README."""
    command = command.replace("127.0.0.1:8080", f"127.0.0.1:{open_server.port}")
    shown = run(["sh", "-c", command.replace("curl ", "curl --silent --fail ", 1)], tmp_path)
    assert '"object":"list"' in shown


def test_readme_has_code() -> None:
    """What is run above is there."""
    assert len(PYTHON) >= 2
    assert len(CURLS) >= 1
