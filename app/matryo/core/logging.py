"""Log lines: one JSON object each, or plain text on a terminal.

Only `matryo serve` calls `configure`; a library import configures nothing. A request ends with
one line that carries all its facts; no line ever quotes a text or a key.

A record is always one line, or one line and an indented traceback. What callers sent is cut and
escaped.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

import orjson

from matryo.core.log_writer import WriterHandler
from matryo.core.printable import MOST_CHARS, cut, escaped, escaped_lines
from matryo.core.terminal import can_draw

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


_MOST_MESSAGE_CHARS = 4 * MOST_CHARS
_MOST_EXCEPTION_CHARS = 32 * MOST_CHARS
_LAST_LINES_S = 1.0


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller passed as `extra=`; texts are cut."""
    return {
        key: _short(value)
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None and key != "color_message"
    }


def _short(value: object) -> object:
    """A value for a log line: a number as it is, of anything else the text, cut."""
    return value if isinstance(value, (int, float)) else cut(str(value))


def _message(record: logging.LogRecord) -> str:
    """The message of a record, in which each text is cut, and the whole too."""
    if isinstance(record.args, tuple):
        values = tuple(cut(one) if isinstance(one, str) else one for one in record.args)
        text = str(record.msg) % values if values else str(record.msg)
    else:
        text = record.getMessage()
    return cut(text.rstrip("\n"), _MOST_MESSAGE_CHARS)


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback of a record, its lines cut; the last lines of a long one."""
    if not record.exc_info:
        return ""
    lines = formatter.formatException(record.exc_info).split("\n")
    text = "\n".join(cut(line) for line in lines)
    return text[-_MOST_EXCEPTION_CHARS:]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, then the facts."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_facts(record),
        }
        if exception := _exception(self, record):
            line["exception"] = exception
        try:
            text = orjson.dumps(line).decode()
        except TypeError:  # a surrogate from an undecodable name, or an integer over 64 bits
            return json.dumps(line)
        # orjson leaves U+2028 and the like as they are, and some readers end a line there.
        return text if text.isprintable() else json.dumps(line)


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO  message key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f" {key}={_quoted(value)}" for key, value in _facts(record).items())
        text = f"{stamp} {record.levelname:<7} {escaped(_message(record))}{facts}"
        if exception := _exception(self, record):
            text += "\n" + escaped_lines(exception)
        return text


def _quoted(value: object) -> str:
    """A fact as text; in quotes if the value could be read as two facts."""
    text = escaped(str(value))
    if not set(text) & set(' ="'):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def style_of(text: str | None) -> Style:
    """The style that a setting names; `auto` if the setting has no such value."""
    wanted = (text or "").strip().lower()
    return next((style for style in get_args(Style) if style == wanted), "auto")


def configure(level: str, style: Style, stream: TextIO | None = None) -> None:
    """Send the root logger's lines to a stream; replaces earlier handlers.

    Python's warnings become log lines, and so do uncaught exceptions.

    Args:
        level: name of the lowest level that is written.
        style: of the lines.
        stream: None for standard error, which is written by a thread: a caller of the log
            never waits for the reader of standard error.
    """
    out = stream or sys.stderr
    as_text = style == "text" or (style == "auto" and out.isatty())
    handler = logging.StreamHandler(out) if stream else _standard_error()
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_in_thread
    sys.unraisablehook = _log_unraisable


def _standard_error() -> logging.Handler:
    """The handler of standard error that is in use, or a new one."""
    if handler := _writer():
        return handler
    try:
        descriptor = sys.stderr.fileno()
    except io.UnsupportedOperation:  # replaced by an object without a descriptor, as by a test
        return logging.StreamHandler(sys.stderr)
    handler = WriterHandler(descriptor, sys.stderr.encoding)
    atexit.register(handler.drain, _LAST_LINES_S)
    return handler


def _writer() -> WriterHandler | None:
    handlers = logging.getLogger().handlers
    return next((one for one in handlers if isinstance(one, WriterHandler)), None)


def on_drop(count: Callable[[int], object]) -> None:
    """Have `count` called with the number of log lines that were just dropped."""
    if writer := _writer():
        writer.on_drop = count


def open_standard_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    The next file or socket of the process would take the stream's number, and then receive what
    libraries write to the stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - no keyword
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison] - typeshed: never None
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open


def writes_json() -> bool:
    """Whether `configure` chose JSON lines."""
    return any(isinstance(one.formatter, JsonFormatter) for one in logging.getLogger().handlers)


def is_on_terminal() -> bool:
    """Whether the log is text on a terminal that shows panels and colours."""
    return bool(_writer()) and not writes_json() and can_draw(sys.stderr)


def show(text: str) -> None:
    """Write lines of text among those of the log, in order."""
    if writer := _writer():
        writer.put(text)


def fatal(message: str) -> None:
    """Write why the process ends: a log line in JSON, else `matryo: MESSAGE` on standard error."""
    sentence = ERROR_PREFIX + "\n".join(map(escaped, message.split("\n")))
    if writes_json():
        log.error(message)
    elif writer := _writer():
        writer.put(sentence)
    else:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - for the operator


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
