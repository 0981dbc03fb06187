"""A live server for real clients, and the page of what they show.

    pytest tests/clients -n 0 --compatibility docs/COMPATIBILITY.md

A test marked `shows(package, what)` is a line of that page, in the part of its file.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from matryo.store.encodings import find_table
from matryo.store.layout import Store
from tests.contract.conftest import Live, live_server
from tests.fakes import MINILM, FakeEngine

HERE = Path(__file__).parent
MODEL = "nomic-embed-text-v1.5"
KEY = "sk-test"

_INTRODUCTION = """# Compatibility

What real clients were seen to do against a live server, written by `make compatibility` from
`tests/clients`. Every line is a test that runs with the suite; versions are those of that run.
"""
_PARTS = {"test_grpc.py": "gRPC", "test_tei.py": "TEI's routes"}
_OPENAI = "OpenAI's routes"
_MARKS = {"passed": "yes", "failed": "**no**", "skipped": "not tried"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the page goes, if it is wanted."""
    parser.addoption("--compatibility", type=Path, help="write the compatibility page there")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What clients warn of is theirs."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def what_clients_leave_open() -> Iterator[None]:
    """Sockets that a client never closes are collected here, and not during another test."""
    yield
    if litellm := sys.modules.get("litellm"):
        litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()


def shown(item: pytest.Item) -> tuple[str, str, str] | None:
    """Part of the page, package and sentence of a test's line."""
    mark = item.get_closest_marker("shows")
    part = _PARTS.get(item.path.name, _OPENAI)
    return (part, str(mark.args[0]), str(mark.args[1])) if mark else None


_outcomes: dict[tuple[str, str, str], str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how each line came out."""
    report: pytest.TestReport = yield
    line = shown(item)
    if line and (call.when == "call" or report.outcome != "passed"):
        _outcomes[line] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page."""
    path: Path | None = session.config.getoption("--compatibility", default=None)
    if path:
        path.write_text(page(_outcomes), encoding="utf-8")


def page(outcomes: dict[tuple[str, str, str], str]) -> str:
    """The page as Markdown, with a part for each door and a table for each client."""
    lines = [_INTRODUCTION]
    for part in dict.fromkeys((_OPENAI, *_PARTS.values())):
        lines += [f"## {part}", ""]
        for package in dict.fromkeys(one for door, one, _ in outcomes if door == part):
            lines += [f"### {package} {_version(package)}".rstrip(), "", "| | |", "|---|---|"]
            lines += [
                f"| {what} | {_MARKS[outcome]} |"
                for (*key, what), outcome in outcomes.items()
                if key == [part, package]
            ]
            lines.append("")
    return "\n".join(lines)


def _version(package: str) -> str:
    name, _, platform = package.partition(" (")
    try:
        return version(name if not platform else "")
    except (PackageNotFoundError, ValueError):
        locked = json.loads((HERE / "node" / "package-lock.json").read_text(encoding="utf-8"))
        return str(locked["packages"].get(f"node_modules/{name}", {}).get("version", ""))


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    """No client reports to its makers, and LangChain finds the vocabulary on this machine."""
    patch = pytest.MonkeyPatch()
    table = find_table(Store(Path("none")))
    assert table
    for name, value in {
        "TIKTOKEN_CACHE_DIR": str(table.parent),
        "CUSTOM_TIKTOKEN_CACHE_DIR": str(table.parent),
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "ANONYMIZED_TELEMETRY": "False",
        "OPENAI_API_KEY": KEY,
    }.items():
        patch.setenv(name, value)
    yield
    patch.undo()


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """The fake v1.5 as default and a fake MiniLM, behind a key."""
    with live_server([engine, FakeEngine(MINILM)], api_keys=KEY) as server:
        yield server


@pytest.fixture
def base_url(live: Live) -> str:
    """What a client's base URL is set to."""
    return f"{live.url}/v1"


@pytest.fixture
def batch_url(engine: FakeEngine, tmp_path: Path) -> Iterator[str]:
    """The base URL of a server with a Batch API, its files in a folder of the test."""
    with live_server(engine, api_keys=KEY, batch=True, batch_dir=tmp_path / "batches") as server:
        yield f"{server.url}/v1"
