"""A log handler that never waits for a reader: a thread writes the lines to standard error.

Nobody may read the pipe of standard error, and a write to a full pipe waits without end.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

_MOST_LINES, _MOST_BYTES = 10_000, 4 << 20
_TAKEN_BYTES = 64 << 10


class WriterHandler(logging.Handler):
    """Queues the line of each record; a thread writes the lines, in order, to a descriptor.

    A line is dropped if 10,000 lines or 4 MiB wait. A line of the log says how many lines were
    dropped, once there is room again.

    Args:
        descriptor: of a file, a pipe or a terminal. The handler does not close the descriptor.
        encoding: of the lines.
    """

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self.on_drop: Callable[[int], object] = lambda _: None
        self._descriptor, self._encoding = descriptor, encoding
        # `put` of this queue may interrupt itself: a signal handler may log.
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        # The handler's lock guards what was put and dropped. The thread alone writes the rest.
        self._n_put = self._bytes_put = self._n_dropped = 0
        self._n_taken = self._bytes_taken = 0
        self._is_torn = False
        # The thread takes no signals: one that the main thread holds back would reach it here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Thread(target=self._work, name="matryo-log", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record."""
        try:
            line = self.format(record)
        except Exception as exc:
            line = self._own_line(f"{record.name}: a log line failed with {type(exc).__name__}")
        self.put(line)

    def put(self, line: str) -> None:
        """Queue a line, or count the line as dropped."""
        data = self._encoded(line)
        self.acquire()
        try:
            has_room = self._has_room(len(data))
            if has_room:
                self._report_dropped()
                self._queue_line(data)
            else:
                self._n_dropped += 1
        finally:
            self.release()
        if not has_room:
            self.on_drop(1)

    def drain(self, timeout_s: float) -> None:
        """Return once the lines that wait now are written, or after `timeout_s`."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(timeout_s)

    def _encoded(self, line: str) -> bytes:
        return f"{line}\n".encode(self._encoding, "backslashreplace")

    def _has_room(self, n_bytes: int) -> bool:
        n_lines = self._n_put - self._n_taken
        return n_lines < _MOST_LINES and (
            self._bytes_put - self._bytes_taken + n_bytes <= _MOST_BYTES
        )

    def _queue_line(self, data: bytes) -> None:
        self._n_put += 1
        self._bytes_put += len(data)
        self._queue.put(data)

    def _report_dropped(self) -> None:
        n_dropped, self._n_dropped = self._n_dropped, 0
        if n_dropped:
            line = self._own_line(f"{n_dropped} log lines were dropped because nobody read them")
            self._queue_line(self._encoded(line))

    def _own_line(self, message: str) -> str:
        facts = {"name": "matryo", "levelno": logging.WARNING, "levelname": "WARNING"}
        return self.format(logging.makeLogRecord({**facts, "msg": message}))

    # --- the thread

    def _work(self) -> None:
        while True:
            lines, waiting = self._next()
            for piece in _pieces(lines):
                self._write(piece)
            self._n_taken += len(lines)
            self._bytes_taken += sum(map(len, lines))
            if self._n_dropped and self._queue.empty():
                self.acquire()
                self._report_dropped()
                self.release()
            if waiting:
                waiting.set()

    def _next(self) -> tuple[list[bytes], threading.Event | None]:
        """Wait for a line; returns about 64 KiB of lines, and who waits for them to be written."""
        lines: list[bytes] = []
        n_bytes = 0
        item = self._queue.get()
        while not isinstance(item, threading.Event):
            lines.append(item)
            n_bytes += len(item)
            if n_bytes >= _TAKEN_BYTES:
                return lines, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return lines, None
        return lines, item

    def _write(self, data: bytes) -> None:
        """Write to the descriptor; what cannot be written, as on a full disk, is lost."""
        if self._is_torn:
            data = b"\n" + data
            self._is_torn = False
        whole = len(data)
        try:
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # another process made the pipe non-blocking
                    select.select([], [self._descriptor], [])
        except (OSError, ValueError):  # a reader that is gone, a full disk, a closed descriptor
            self._is_torn = len(data) < whole
            self.on_drop(data.count(b"\n"))


def _pieces(lines: list[bytes]) -> Iterator[bytes]:
    """Whole lines, joined up to the size that one write to a pipe keeps together.

    Several processes write to one pipe; longer pieces would mix their lines.
    """
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
