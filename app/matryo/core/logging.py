"""Log lines: one JSON object each, or plain text on a terminal.

Only `main` and `cli` call `configure`; a library import configures nothing. A request
closes with one line that carries all its facts; no line ever quotes a text or a key.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal, TextIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
}


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller passed as `extra=`."""
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None and key != "color_message"
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, then the facts."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO  message key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items())
        text = f"{stamp} {record.levelname:<7} {record.getMessage()}{facts}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure(
    level: str, style: Literal["auto", "text", "json"], stream: TextIO | None = None
) -> None:
    """Send the root logger's lines to `stream` (standard error); replaces earlier handlers."""
    out = stream or sys.stderr
    as_text = style == "text" or (style == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Our own line for each request says more than uvicorn's; its life-cycle lines repeat ours.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel("WARNING")
