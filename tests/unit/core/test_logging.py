"""Log lines carry their facts, as JSON for machines and as text for people."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Literal

import pytest

from matryo.core.logging import configure, fatal


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


HOSTILE = "a\nb\r\x1b[31m\x85\u2028\u2029\u202e\ud800\x7f\x9b\x00c"
ESCAPED = r"a\nb\r\x1b[31m\x85\u2028\u2029\u202e\ud800\x7f\x9b\x00c"


def fail(text: str) -> None:
    """Raise an error with a text."""
    raise ValueError(text)


class TestHostile:
    """No text of a caller makes a second line, moves the cursor, or fills the log."""

    def test_text(self) -> None:
        """In text, what cannot be printed is written as Python writes it."""
        out = io.StringIO()
        configure("info", "text", out)
        log = logging.getLogger("x")
        log.info("GET %s", HOSTILE, extra={"model": HOSTILE})
        log.warning(HOSTILE)
        first, second = out.getvalue().splitlines()
        assert f"GET {ESCAPED} model={ESCAPED}" in first
        assert second.endswith(ESCAPED)

    def test_facts_are_apart(self) -> None:
        """A fact that looks like two is in quotes."""
        out = io.StringIO()
        configure("info", "text", out)
        logging.getLogger("x").info("m", extra={"model": 'a" status=200', "ms": 1})
        assert out.getvalue().endswith(' m model="a\\" status=200" ms=1\n')

    def test_traceback(self) -> None:
        """The lines of an exception's text are indented, and never begin as a log line does."""
        out = io.StringIO()
        configure("info", "text", out)
        try:
            fail(f"{HOSTILE}\n12:00:00 INFO    forged")
        except ValueError:
            logging.getLogger("x").exception("failed")
        first, *rest = out.getvalue().splitlines()
        assert first.endswith("failed")
        assert all(line.startswith("    ") for line in rest)
        assert r"b\r\x1b[31m\x85\u2028" in rest[-2]
        assert rest[-1] == "    12:00:00 INFO    forged"

    @pytest.mark.parametrize("hostile", [HOSTILE, HOSTILE.replace("\ud800", "")])
    def test_json(self, hostile: str) -> None:
        """In JSON, a record is one line for every reader, and plain to a terminal."""
        out = io.StringIO()
        configure("info", "json", out)
        try:
            fail(hostile)
        except ValueError:
            logging.getLogger("x").exception("GET %s", hostile, extra={"model": hostile})
        assert out.getvalue()[:-1].isprintable()
        line = json.loads(out.getvalue())
        assert (line["message"], line["model"]) == (f"GET {hostile}", hostile)
        assert hostile in line["exception"]

    @pytest.mark.parametrize("style", ["text", "json"])
    def test_length(self, style: Literal["text", "json"]) -> None:
        """Every part of a line has a bound, and says how long it was."""
        out = io.StringIO()
        configure("info", style, out)
        long = "x" * 1_000_000
        log = logging.getLogger("x")
        log.info("GET %s 200", long, extra={"model": long, "list": [long]})
        line = out.getvalue()
        assert len(line) < 10_000
        assert "x... (1000000 characters) 200" in line
        log.info(long)
        log.info("%s", ValueError(long))
        try:
            fail("\n".join([long] * 1_000))
        except ValueError:
            log.exception("failed")
        assert len(out.getvalue()) < 100_000

    def test_warnings(self) -> None:
        """A warning of Python is one line."""
        out = io.StringIO()
        configure("info", "text", out)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("first\nsecond", stacklevel=1)
        (line,) = out.getvalue().splitlines()
        assert r"first\nsecond" in line

    @pytest.mark.parametrize("style", ["text", "json"])
    def test_fatal(self, style: Literal["text", "json"]) -> None:
        """The reason of an end carries no control characters to a terminal."""
        out = io.StringIO()
        configure("info", style, out)
        with redirect_stderr(out):
            fatal("no model \x1b[31m")
        assert "no model" in out.getvalue()
        assert "\x1b" not in out.getvalue()
