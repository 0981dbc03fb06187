"""Log lines carry their facts, as JSON for machines and as text for people."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from matryo.core.logging import configure


@pytest.fixture(autouse=True)
def restore_root() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_json_lines() -> None:
    """Away from a terminal a line is one JSON object with its facts and its exception."""
    out = io.StringIO()
    configure("info", "auto", out)
    try:
        int("no")
    except ValueError:
        logging.getLogger("x").exception("it %s", "broke", extra={"model": "m", "none": None})
    logging.getLogger("x").debug("unseen")
    line = json.loads(out.getvalue())
    assert (line["message"], line["level"], line["model"]) == ("it broke", "error", "m")
    assert "none" not in line
    assert "ValueError: invalid literal" in line["exception"]
    assert line["time"].endswith("Z")


def test_text_lines() -> None:
    """As text, facts follow the message."""
    out = io.StringIO()
    configure("info", "text", out)
    logging.getLogger("x").warning("slow", extra={"ms": 3})
    assert out.getvalue().rstrip().endswith("WARNING slow ms=3")
