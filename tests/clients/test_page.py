"""docs/COMPATIBILITY.md is what the tests show; `make compatibility` writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import page, shown

PAGE = Path(__file__).parents[2] / "docs" / "COMPATIBILITY.md"


def test_page_has_every_line(request: pytest.FixtureRequest) -> None:
    """No test without its line, and no line that was not seen to hold."""
    text = PAGE.read_text(encoding="utf-8")
    lines = {line for item in request.session.items if (line := shown(item))}
    assert [what for *_, what in lines if f"| {what} | yes |" not in text] == []


def test_page_tells_failures() -> None:
    """A line that fails, or was not tried, is not a yes."""
    api = "OpenAI's routes"
    outcomes = {
        (api, "openai", "a"): "failed",
        (api, "openai", "b"): "skipped",
        (api, "ai (Node)", "c"): "passed",
        ("gRPC", "tritonclient", "d"): "passed",
    }
    text = page(outcomes)
    for line in ("| a | **no** |", "| b | not tried |", "| c | yes |"):
        assert line in text
    assert "### ai (Node) " in text
    assert text.index("## gRPC") < text.index("### tritonclient") < text.index("| d | yes |")
