"""Standard error that nobody reads, or that cannot be written, holds up nobody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from matryo.core import log_writer
from matryo.core.log_writer import WriterHandler
from tests.contract.conftest import wait_until

LOGGING = """
import logging, sys
from matryo.core import logging as logs
logs.open_standard_streams()
logs.configure("info", "text")
for n in range(20_000):
    logging.getLogger("x").info("line %d %s", n, "x" * 300)
logs.fatal("the end")
"""


class Pipe:
    """A pipe, a handler that writes to it, and what was read so far."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.handler = WriterHandler(self.writer)
        self.dropped: list[int] = []
        self.handler.on_drop = self.dropped.append
        self.data = b""

    def log(self, message: str) -> None:
        """Log a message."""
        self.handler.handle(logging.makeLogRecord({"msg": message}))

    def read(self) -> list[str]:
        """What came so far, as lines."""
        with suppress(BlockingIOError):
            while piece := os.read(self.reader, 1 << 20):
                self.data += piece
        return self.data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe that nobody reads yet."""
    pipe = Pipe()
    yield pipe
    with suppress(OSError):
        pipe.read()
        pipe.handler.drain(10)
        os.close(pipe.reader)
        os.close(pipe.writer)


def test_nobody_reads(pipe: Pipe) -> None:
    """Lines wait up to a number; the rest is counted, and reported in order once it is read."""
    for n in range(12_000):
        pipe.log(f"{n} {'x' * 90}")
    n_dropped = len(pipe.dropped)
    assert 0 < n_dropped <= 2_000
    report = f"{n_dropped} log lines were dropped because nobody read them"
    wait_until(lambda: report in pipe.read())
    pipe.log("later")
    wait_until(lambda: "later" in pipe.read())
    lines = pipe.read()
    assert [int(line.split()[0]) for line in lines[:-2]] == list(range(12_000 - n_dropped))
    assert lines[-2:] == [report, "later"]


def test_bytes_are_bounded(pipe: Pipe) -> None:
    """Few lines that are long fill the queue too."""
    for _ in range(100):
        pipe.log("x" * 100_000)
    assert 50 < len(pipe.dropped) < 100


def test_a_reader_that_goes(pipe: Pipe) -> None:
    """Lines without a reader are lost and counted, and the handler goes on."""
    os.close(pipe.reader)
    for n in range(3):
        pipe.log("lost")
        pipe.handler.drain(10)
        assert sum(pipe.dropped) == n + 1
    pipe.reader, again = os.pipe()
    os.set_blocking(pipe.reader, False)
    os.dup2(again, pipe.writer)
    os.close(again)
    pipe.log("back")
    wait_until(lambda: pipe.read() == ["back"])


def test_non_blocking(pipe: Pipe) -> None:
    """Another process may have made the pipe non-blocking: no line is lost for that."""
    os.set_blocking(pipe.writer, False)
    for n in range(3_000):
        pipe.log(f"{n} {'x' * 90}")
    wait_until(lambda: len(pipe.read()) == 3_000)
    assert [int(line.split()[0]) for line in pipe.read()] == list(range(3_000))


def test_lines_stay_whole() -> None:
    """What one write to a pipe may split is never put together, so that processes mix lines only."""
    lines = [b"x" * n + b"\n" for n in (10, 4_000, 90, 5_000, 10)]
    pieces = list(log_writer._pieces(lines))
    assert b"".join(pieces) == b"".join(lines)
    assert [len(piece) for piece in pieces] == [4_012, 91, 5_001, 11]


def test_a_line_that_fails(pipe: Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that cannot be formatted becomes a line that says so; nothing is printed."""
    record = logging.makeLogRecord({"name": "x", "msg": "%d", "args": ("no number",)})
    pipe.handler.handle(record)
    wait_until(lambda: pipe.read() == ["x: a log line failed with TypeError"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&1 | true", "<&- >&- 2>&-"])
def test_no_standard_error(redirection: str) -> None:
    """A standard error that is closed, full or without a reader is no error of the program."""
    program = f"'{sys.executable}' -c '{LOGGING}'"
    command = f"set -o pipefail; {program} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_end_does_not_wait() -> None:
    """A process ends within seconds although nobody reads its standard error."""
    reader, writer = os.pipe()
    try:
        subprocess.run([sys.executable, "-c", LOGGING], stderr=writer, check=True, timeout=30)
    finally:
        os.close(reader)
        os.close(writer)


def test_last_line() -> None:
    """Every line of a process that ends is written, in order, the reason of the end last."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGING.replace("20_000", "5_000")],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 5_001
    assert lines[-1] == "matryo: the end"
    assert "line 4999 x" in lines[-2]
