"""Runs commands on a pseudo-terminal, and says what a user then sees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\|(.)", re.DOTALL)
_PATIENCE_S = 120.0
# What the environment says of a terminal; pytest's workers say that one has 80 columns.
_SAID = frozenset(("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM"))


@dataclass
class Terminal:
    """A command that runs, its standard error (and more) on a terminal.

    Attributes:
        shown: every byte that the terminal got.
    """

    process: subprocess.Popen[bytes]
    ours: int
    columns: int
    shown: bytes = b""

    def read_until(self, seen: Callable[[str], bool]) -> str:
        """Read until the text so far satisfies `seen`, or the command ends; returns the text."""
        until = time.monotonic() + _PATIENCE_S
        while not seen(self.text):
            if time.monotonic() > until:
                raise TimeoutError(self.text)
            ready, _, _ = select.select([self.ours], [], [], 0.5)
            if not ready:
                continue
            try:
                piece = os.read(self.ours, 1 << 16)
            except OSError:  # nobody holds the other end any more
                break
            if not piece:
                break
            self.shown += piece
        return self.text

    def finish(self) -> int:
        """Read until the command ends; returns its exit status."""
        self.read_until(lambda _: False)
        with contextlib.suppress(OSError):
            os.close(self.ours)
        return self.process.wait(60)

    def resize(self, columns: int, lines: int = 24) -> None:
        """Give the terminal another size."""
        _resize(self.ours, columns, lines)

    def press(self, key: bytes) -> None:
        """Type a key, such as Ctrl-C."""
        os.write(self.ours, key)

    @property
    def text(self) -> str:
        """What the terminal got, as text."""
        return self.shown.decode(errors="replace")

    @property
    def screen(self) -> list[str]:
        """The lines that are on the screen at last, without blanks at their ends."""
        return screen(self.text, self.columns)


def _resize(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def start_on_terminal(
    command: Sequence[str],
    env: dict[str, str],
    *,
    code: str = "",
    columns: int = 80,
    lines: int = 24,
    streams: str = "err",
    stdin: int | None = subprocess.DEVNULL,
) -> Terminal:
    """Start `matryo COMMAND` in a session of its own, with a terminal.

    Args:
        command: the arguments.
        code: a program to run in place of `matryo`.
        env: variables beside those of this process.
        columns: of the terminal; 0 is what some terminals report.
        lines: likewise.
        streams: `err` for standard error alone, `out` for standard output alone, `all` for the
            three standard streams.
        stdin: standard input, unless the terminal is.
    """
    ours, theirs = pty.openpty()
    _resize(ours, columns, lines)
    plain = {name: value for name, value in os.environ.items() if name not in _SAID}
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "matryo"]), *command],
        env=plain | {"TERM": "xterm-256color"} | env,
        stdin=theirs if streams == "all" else stdin,
        stdout=theirs if streams in {"out", "all"} else subprocess.PIPE,
        stderr=theirs if streams in {"err", "all"} else subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads
    )
    os.close(theirs)
    return Terminal(process, ours, columns or 80)


def screen(text: str, columns: int) -> list[str]:
    """What a terminal shows that got `text`: enough of an emulator for lines, bars and colours."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for match in _CONTROL.finditer(text):
        arguments, command, plain = match.groups()
        number = int(arguments) if arguments and arguments.isdigit() else 0
        if command == "A":
            row = max(0, row - max(1, number))
        elif command == "K":
            rows[row] = [] if number == 2 else rows[row][:column]
        elif plain == "\r":
            column = 0
        elif plain == "\n":
            row += 1
        elif plain and plain.isprintable():
            if column == columns:
                row, column = row + 1, 0
            while len(rows) <= row:
                rows.append([])
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = plain
            column += 1
        while len(rows) <= row:
            rows.append([])
    lines = ["".join(row).rstrip() for row in rows]
    while lines and not lines[-1]:
        lines.pop()
    return lines
