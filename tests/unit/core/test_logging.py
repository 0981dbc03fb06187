"""Log lines carry their facts, as JSON for machines and as text for people."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from matryo.core.logging import configure


@pytest.fixture(autouse=True)
def restore_root() -> Iterator[None]:
    """Leave the root logger and Python's hooks as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


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


def test_odd_facts() -> None:
    """What strict JSON cannot hold, such as a lone surrogate, does not lose the line."""
    out = io.StringIO()
    configure("info", "json", out)
    logging.getLogger("x").warning("name %s", "\udcff", extra={"n": 2**70})
    line = json.loads(out.getvalue())
    assert (line["message"], line["n"]) == ("name \udcff", 2**70)
