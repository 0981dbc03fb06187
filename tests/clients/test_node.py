"""Clients on Node.js, where Node and npm are; the rest of the suite does without."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import KEY, MODEL
from tests.fakes import FakeEngine, as_float32

HERE = Path(__file__).parent / "node"
OPENAI, VERCEL, LANGCHAIN = "openai (Node)", "ai (Vercel AI SDK)", "@langchain/openai (Node)"
TEXTS = ["The sky is blue.", "Grass is green.", "Größe 語 🎉"]
shows = pytest.mark.shows
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the script, its packages installed from the lock."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for path in (HERE / "package.json", HERE / "package-lock.json", HERE / "clients.mjs"):
        shutil.copy(path, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    command += ["--fetch-retries", "1", "--fetch-timeout", "20000"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=180)
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"npm cannot install the clients: {exc.stderr.decode()[-300:]}")
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not install the clients within 180 s")
    return folder


async def run(node: Path, case: str, base_url: str, texts: list[str] = TEXTS) -> Any:
    """What a case of the script prints."""
    process = await asyncio.create_subprocess_exec(
        "node", "clients.mjs", case, base_url, KEY, MODEL,
        cwd=node, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(json.dumps(texts).encode())
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def expected(engine: FakeEngine, prefix: str, texts: list[str], size: int = 768) -> Any:
    """The vectors of the texts with that prefix."""
    return np.array([engine.expected(f"{prefix}: {text}", size) for text in texts])


@shows(OPENAI, "default settings: base64, decoded without looking")
async def test_openai(node: Path, base_url: str, engine: FakeEngine) -> None:
    """A server that ignored base64 would give zeros here."""
    found = await run(node, "openai", base_url)
    assert np.array_equal(as_float32(found), expected(engine, "search_document", TEXTS))


@shows(OPENAI, "`input_type` straight in the object, `dimensions`, floats")
async def test_openai_query(node: Path, base_url: str, engine: FakeEngine) -> None:
    """The SDK spreads what it does not know into the body."""
    found = await run(node, "openai_query", base_url)
    assert np.array_equal(as_float32(found), expected(engine, "search_query", TEXTS, 256))


@shows(OPENAI, "its exceptions, with code and request id")
async def test_openai_error(node: Path, base_url: str) -> None:
    """An unknown model."""
    found = await run(node, "openai_error", base_url)
    assert found == ["NotFoundError", 404, "model_not_found", "string"]


@shows(OPENAI, "`files` and `batches`, unchanged")
async def test_openai_batches(node: Path, batch_url: str) -> None:
    """Uploads, lists, downloads, makes a batch, cancels, deletes; the file comes before its life."""
    found = await run(node, "openai_batches", batch_url)
    assert found == [3600, True, True, True, True, True, True]


@shows(VERCEL, "`embedMany`, and `embed` with `dimensions`")
async def test_vercel(node: Path, base_url: str, engine: FakeEngine) -> None:
    """It wants floats, and reads usage."""
    found = await run(node, "vercel", base_url)
    assert np.array_equal(as_float32(found), expected(engine, "search_document", TEXTS))
    found = await run(node, "vercel_one", base_url)
    assert np.array_equal(as_float32(found), expected(engine, "search_document", TEXTS[:1], 256))


@shows(LANGCHAIN, "`OpenAIEmbeddings` with default settings")
async def test_langchain(node: Path, base_url: str, engine: FakeEngine) -> None:
    """Strings, unlike its Python sister."""
    found = await run(node, "langchain", base_url)
    texts = [*TEXTS, TEXTS[0]]
    assert np.array_equal(as_float32(found), expected(engine, "search_document", texts))
