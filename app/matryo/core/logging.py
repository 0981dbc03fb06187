"""Log lines: one JSON object each, or plain text on a terminal.

Only `matryo serve` calls `configure`; a library import configures nothing. A request ends with
one line that carries all its facts; no line ever quotes a text or a key.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

import orjson

Style = Literal["auto", "text", "json"]
"""`auto` is text on a terminal, and JSON lines elsewhere."""

ERROR_PREFIX = "matryo: "
"""Starts the line by which a command says, outside of a log, why it ends."""

log = logging.getLogger("matryo")

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
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a surrogate from an undecodable name, or an integer over 64 bits
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO  message key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items())
        text = f"{stamp} {record.levelname:<7} {record.getMessage()}{facts}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def style_of(text: str | None) -> Style:
    """The style that a setting names; `auto` if the setting has no such value."""
    wanted = (text or "").strip().lower()
    return next((style for style in get_args(Style) if style == wanted), "auto")


def configure(level: str, style: Style, stream: TextIO | None = None) -> None:
    """Send the root logger's lines to `stream` (standard error); replaces earlier handlers.

    Python's warnings become log lines. In JSON, so do uncaught exceptions.
    """
    out = stream or sys.stderr
    as_text = style == "text" or (style == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = sys.__excepthook__ if as_text else _log_uncaught
    threading.excepthook = threading.__excepthook__ if as_text else _log_in_thread
    sys.unraisablehook = sys.__unraisablehook__ if as_text else _log_unraisable


def writes_json() -> bool:
    """Whether `configure` chose JSON lines."""
    return any(isinstance(one.formatter, JsonFormatter) for one in logging.getLogger().handlers)


def fatal(message: str) -> None:
    """Write why the process ends: a log line in JSON, else `matryo: MESSAGE` on standard error."""
    if writes_json():
        log.error(message)
    else:
        print(f"{ERROR_PREFIX}{message}", file=sys.stderr, flush=True)  # noqa: T201 - for the operator


def _log_uncaught(
    kind: type[BaseException], exc: BaseException, trace: TracebackType | None
) -> None:
    log.critical("the process ends: %s", exc or kind.__name__, exc_info=(kind, exc, trace))


def _log_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value:
        facts = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error("a thread ends: %s", args.exc_value, exc_info=facts)


def _log_unraisable(args: Any) -> None:  # noqa: ANN401 - sys.UnraisableHookArgs exists for types alone
    facts = (args.exc_type, args.exc_value, args.exc_traceback)
    log.error("an exception was dropped: %s", args.exc_value, exc_info=facts)
