"""A window: the lines that are read, answered and committed together.

A window has enough texts of like length for full batches. Windows are the unit of memory, of
progress, and of what a kill makes undone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from matryo.batch.lines import Line, RawLine, read_line
from matryo.batch.objects import LineError, WindowResult
from matryo.core.errors import InvalidRequest
from matryo.service import Caller

MAX_INPUTS = 1024
"""Embedding inputs of a window."""

_MAX_BYTES = 1 << 17  # of the lines of a window; about 30,000 tokens of English
_MAX_NUMBERS = 1 << 20  # of a window's vectors: 11 MB of JSON


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """Bounds of a window. One line over them is a window by itself.

    Attributes:
        max_inputs: embedding inputs.
        max_bytes: of the lines.
    """

    max_inputs: int = MAX_INPUTS
    max_bytes: int = _MAX_BYTES


def window_limits(dimensions: int, max_inputs: int | None) -> WindowLimits:
    """Bounds for vectors of so many dimensions, and requests of so many inputs."""
    return WindowLimits(
        max(1, min(max_inputs or MAX_INPUTS, MAX_INPUTS, _MAX_NUMBERS // dimensions))
    )


@dataclass(frozen=True, slots=True)
class Window:
    """Lines of a file, one after another.

    Attributes:
        requests: the lines that have a request.
        n_lines: all lines, blank ones included.
        n_bytes: of all lines.
    """

    requests: Sequence[Line]
    n_lines: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What a request of a file is answered with.

    Attributes:
        status: of HTTP.
        body: JSON, that of `POST` on the endpoint.
        n_tokens: of the request's texts.
    """

    status: int
    body: bytes
    n_tokens: int = 0

    @property
    def is_ok(self) -> bool:
        """Whether the answer goes to the output file."""
        return self.status == 200  # noqa: PLR2004 - the name of a status


class Door(Protocol):
    """Answers the requests of a window."""

    async def __call__(
        self, bodies: Sequence[bytes], caller: Caller, request_ids: Sequence[str]
    ) -> Sequence[LineAnswer]:
        """The answer to each body, in order.

        Args:
            bodies: JSON, one for each request.
            caller: whose requests they are.
            request_ids: one for each request, for the log and for the messages of faults.

        Raises:
            NotReady: the service is stopping; no request has an answer.
        """
        ...


def read_windows(lines: Iterable[RawLine], endpoint: str, limits: WindowLimits) -> Iterator[Window]:
    """The windows of a file that was checked.

    Raises:
        InvalidRequest: a line is not what the check saw.
    """
    requests: list[Line] = []
    n_lines = n_bytes = n_inputs = 0
    for line in lines:
        found = None if line.is_blank else read_line(line, endpoint)
        if isinstance(found, LineError):
            raise InvalidRequest(
                f"line {line.number}: {found.message} The file was changed while it was read."
            )
        more = found[2] if found else 0
        is_full = n_inputs + more > limits.max_inputs or n_bytes + line.n_bytes > limits.max_bytes
        if n_lines and is_full:
            yield Window(requests, n_lines, n_bytes)
            requests = []
            n_lines = n_bytes = n_inputs = 0
        if found:
            requests.append(found[0])
        n_lines, n_bytes, n_inputs = n_lines + 1, n_bytes + line.n_bytes, n_inputs + more
    if n_lines:
        yield Window(requests, n_lines, n_bytes)


def request_id(seed: str, number: int) -> str:
    """The id of the request on a line: the same whenever the line is answered.

    Args:
        seed: names the batch.
        number: of the line.
    """
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=16)
    return digest.hexdigest()


async def answer_window(window: Window, door: Door, caller: Caller, seed: str) -> WindowResult:
    """The answers to a window, as they stand in the files of a batch.

    Args:
        window: of the input.
        door: answers the requests.
        caller: whose requests they are.
        seed: names the batch; see `request_id`.

    Raises:
        NotReady: the service is stopping.
    """
    if not window.requests:
        return WindowResult(b"", b"", window.n_lines, window.n_bytes, 0, 0, 0)
    # On threads, because thousands of lines would hold the event loop for some milliseconds.
    ids = await asyncio.to_thread(lambda: [request_id(seed, one.number) for one in window.requests])
    bodies = [one.body for one in window.requests]
    answers = await door(bodies, caller, [f"req_{one}" for one in ids])
    return await asyncio.to_thread(_written, window, ids, answers)


def _written(window: Window, ids: Sequence[str], answers: Sequence[LineAnswer]) -> WindowResult:
    """The lines of the answers: those with status 200 are output, the others are errors."""
    output: list[bytes] = []
    errors: list[bytes] = []
    n_tokens = n_completed = 0
    for request, one, answer in zip(window.requests, ids, answers, strict=True):
        n_tokens += answer.n_tokens
        n_completed += answer.is_ok
        (output if answer.is_ok else errors).extend(
            (
                *_head(request, one),
                b'{"status_code":%d,"request_id":"req_%s","body":' % (answer.status, one.encode()),
                answer.body,
                b'},"error":null}\n',
            )
        )
    n_failed = len(answers) - n_completed
    return WindowResult(
        b"".join(output),
        b"".join(errors),
        window.n_lines,
        window.n_bytes,
        n_completed,
        n_failed,
        n_tokens,
    )


def expire_window(window: Window, seed: str) -> WindowResult:
    """The lines of a window that was not run before the batch expired."""
    error = orjson.dumps(
        {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
    )
    errors = b"".join(
        b"".join((*_head(one, request_id(seed, one.number)), b'null,"error":', error, b"}\n"))
        for one in window.requests
    )
    n_failed = len(window.requests)
    return WindowResult(b"", errors, window.n_lines, window.n_bytes, 0, n_failed, 0)


def _head(request: Line, one: str) -> tuple[bytes, ...]:
    """A line of a file up to its response."""
    return (
        b'{"id":"batch_req_%s","custom_id":' % one.encode(),
        orjson.dumps(request.custom_id),
        b',"response":',
    )
