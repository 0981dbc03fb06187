"""Programs that people start from: examples/ and the code of README and docs run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.contract.conftest import Live, live_server
from tests.fakes import MINILM, FakeEngine

arrow: Any = pa
parquet: Any = pq
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Their programs need other ports, servers or libraries, and have tests of their own, in
# tests/contract and tests/integration/engines.
OTHERS = frozenset(("batch", "corpus", "encoderfile", "grpc", "mcp"))


def snippets(pattern: str, flags: re.RegexFlag) -> list[object]:
    """Every match of `pattern` on the pages, as a test case named after its page."""
    return [
        pytest.param(found, id=f"{page.stem}-{n}")
        for page in PAGES
        if page.stem not in OTHERS
        for n, found in enumerate(re.findall(pattern, page.read_text("utf-8"), flags))
    ]


PYTHON = snippets(r"```python\n(.*?)```", re.DOTALL)
# A batch needs a file that was uploaded: tests/contract/test_batch_page.py.
CURLS = snippets(r"^curl http(?!\S*/v1/batches).*?(?<!\\)$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def open_server(engine: FakeEngine) -> Iterator[Live]:
    """The fake v1.5 and a fake MiniLM, open to all, as `make run` has it."""
    with live_server([engine, FakeEngine(MINILM)]) as server:
        yield server


@pytest.fixture(scope="module")
def tiny_minilm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a store with a tiny model under the name of all-minilm-l6-v2."""
    root = tmp_path_factory.mktemp("minilm")
    model = make_model(root, "bert", model_id=MINILM.id)
    build_tiny(root, model)
    build_tiny(root, model, "int8")
    return {"MATRYO_HOME": str(root / "home"), "MATRYO_MODELS": str(model.models)}


def run(command: list[str], folder: Path, variables: Mapping[str, str] | None = None) -> str:
    """What a command prints; it must succeed."""
    env = os.environ | (variables or {})
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False, text=True)
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
def test_python(open_server: Live, tiny_minilm: dict[str, str], code: str, tmp_path: Path) -> None:
    """Each Python block runs: against a server on another port, or with a tiny model."""
    assert re.search(r"(127\.0\.0\.1|localhost):8080|Embedder\(", code)
    code = re.sub(r"(127\.0\.0\.1|localhost):8080", f"127.0.0.1:{open_server.port}", code)
    path = tmp_path / "block.py"
    path.write_text(code)
    run([sys.executable, str(path)], tmp_path, tiny_minilm)


@pytest.mark.parametrize("command", CURLS)
def test_curl(open_server: Live, command: str, tmp_path: Path) -> None:
    """Each curl gets what its route answers, and vectors from OpenAI's."""
    command = command.replace("127.0.0.1:8080", f"127.0.0.1:{open_server.port}")
    shown = run(["sh", "-c", command.replace("curl ", "curl --silent --fail ", 1)], tmp_path)
    if "/embeddings" in command:
        assert '"embedding":[' in shown or '"embedding":"' in shown
    else:
        assert shown.startswith(("[", "{"))


def test_processes(tiny_minilm: dict[str, str], tmp_path: Path) -> None:
    """Python's own processes embed files of Parquet; a second run leaves finished files alone."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(3):
        texts = [f"the sky is {letter * (number + 1)}" for letter in "abcde"]
        parquet.write_table(arrow.table({"text": texts}), source / f"{number}.parquet")
    command = [sys.executable, "examples/embed_with_processes.py", str(source), str(target)]
    run(command, ROOT, tiny_minilm)
    read = parquet.read_table(target)
    assert (read.num_rows, len(set(read["text"].to_pylist()))) == (15, 15)
    assert len(set(read["fingerprint"].to_pylist())) == 1
    assert len({tuple(vector) for vector in read["embedding"].to_pylist()}) == 15
    first, second, _ = sorted(target.iterdir())
    first.write_bytes(b"finished")
    second.unlink()
    run(command, ROOT, tiny_minilm)
    assert first.read_bytes() == b"finished"
    assert parquet.read_table(second).num_rows == 5


def test_readme_has_code() -> None:
    """README has a curl, a program for OpenAI's client and one for the library."""
    readme = PAGES[0].read_text("utf-8")
    for code in ("\ncurl http", "from openai import OpenAI", "from matryo import Embedder"):
        assert code in readme
    assert len(PYTHON) >= 6
