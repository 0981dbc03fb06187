"""Reads files that may hold anything: damaged, hostile, or of another program.

The rule for every such file is: whatever it holds, a command ends with one `MatryoError`, after a
bounded time and with bounded memory. Three things keep the rule:

- `refusing` turns whatever a parser raises into one error of ours;
- `read_bytes` and `read_json` refuse a file that is larger than any real one;
- a count, a length or an offset in a file is compared with the file's own size before anything is
  allocated. The module of each format does that.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from matryo.core.errors import MatryoError

_REASON_CHARS = 300


@contextlib.contextmanager
def refusing(error: Callable[[str], MatryoError]) -> Generator[None, None, None]:
    """Turn whatever the block raises about a file into one error of ours.

    An error of ours passes through. So do an interrupt and an exit.

    Args:
        error: makes the error from a reason, which is one line of printable text.

    Raises:
        MatryoError: the error, with the original one as its cause.
    """
    try:
        yield
    except MatryoError:
        raise
    except BaseException as exc:
        if not isinstance(exc, Exception) and not is_panic(exc):
            raise
        raise error(reason_of(exc)) from exc


@contextlib.contextmanager
def silent() -> Generator[None, None, None]:
    """Drop what libraries in C or Rust write to standard error during the block.

    A failed check in Rust prints a text of its own, and possibly a trace, before it raises. The
    raised error says the same. No other thread may write to standard error meanwhile.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_panic(exc: BaseException) -> bool:
    """Whether a library in Rust failed at one of its own checks.

    Such an error is not an `Exception`, and its class cannot be imported.

    Source: pyo3, `src/panic.rs`.
    """
    return type(exc).__name__ == "PanicException"


def reason_of(exc: BaseException) -> str:
    """What an error says, as one line of printable text of at most 300 characters."""
    words = " ".join(f"{exc}".split()) or type(exc).__name__
    shown = words if len(words) <= _REASON_CHARS else f"{words[:_REASON_CHARS]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown).rstrip(".")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file of at most `max_bytes`.

    Raises:
        OSError: the file cannot be read.
        ValueError: this is not a regular file, or the file is larger.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(
            f"it has more than the {max_bytes:,} bytes of the largest file that is read"
        )
    return content


def read_json(path: Path, max_bytes: int) -> object:
    """The value in a JSON file of at most `max_bytes`, in UTF-8 with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is larger, or holds anything but one JSON value.
    """
    text = read_bytes(path, max_bytes).decode("utf-8-sig")
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("its values are nested too deeply") from exc
