"""What the Batch API stores: files, batches, and what one window of work adds to a batch.

Every moment is whole seconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Purpose = Literal["batch", "batch_output"]
Order = Literal["asc", "desc"]
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
Ending = Literal["completed", "expired", "cancelled"]

ENDED: frozenset[Status] = frozenset(("failed", "completed", "expired", "cancelled"))
"""Statuses that never change again."""

_Object = TypeVar("_Object")


class LeaseLost(Exception):
    """Another process holds the batch now, or the batch is gone. The work on it must stop."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one owner may store, and for how long.

    Attributes:
        max_file_bytes: most bytes of one upload.
        key_bytes: most bytes of all files of one owner, and of results not yet files.
        key_files: most files of one owner.
        key_batches: most batches of one owner that have not ended.
        retention_s: seconds after which a file expires by default, and seconds that a batch is
            kept after its end.
        lease_s: seconds after which a batch is free if its holder does not renew the lease.
    """

    max_file_bytes: int
    key_bytes: int
    key_files: int
    key_batches: int
    retention_s: int
    lease_s: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    Attributes:
        key: name of the object in the store.
        n_bytes: length of the object.
    """

    key: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class File:
    """A file of a caller.

    Attributes:
        id: starts with `file-`.
        owner: name of the caller's API key; empty if the server has no keys.
        expires_at: moment from which nobody sees the file.
        pieces: the bytes, in order. Results are the pieces that windows wrote.
    """

    id: str
    owner: str
    filename: str
    purpose: Purpose
    n_bytes: int
    created_at: int
    expires_at: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a batch's input file.

    Attributes:
        code: OpenAI's name of the fault, such as `invalid_json_line`.
        line: number of the line, from 1; None if the fault is not in one line.
        param: the field that is wrong; None if no field is.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines of a batch: all, those answered with a vector, and those answered with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of a caller.

    Attributes:
        id: starts with `batch_`.
        owner: name of the caller's API key; empty if the server has no keys.
        caller_weight: share of the caller in the scheduler, from the key.
        model: the model of the lines; None until the input was validated.
        output_file_id: results; None until the end, and if no line was completed.
        error_file_id: lines that failed; None until the end, and if no line failed.
        errors: why the input was refused.
        n_tokens: tokens of the completed lines.
        output_expires_after_s: life of the result files; None for the server's own.
    """

    id: str
    owner: str
    caller_weight: float
    endpoint: str
    model: str | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    errors: tuple[LineError, ...]
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    counts: Counts
    n_tokens: int
    metadata: Mapping[str, str] | None
    output_expires_after_s: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a batch's input is done and committed: lines, bytes and windows."""

    n_lines: int = 0
    n_bytes: int = 0
    n_windows: int = 0


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What the work on the next lines of an input gave.

    Attributes:
        output: lines of the output file, each with its line feed.
        errors: lines of the error file, each with its line feed.
        n_lines: lines of the input that the window covers, blank ones included.
        n_bytes: bytes of the input that the window covers.
        n_completed: lines that `output` answers.
        n_failed: lines that `errors` answers.
        n_tokens: tokens of the completed lines.
    """

    output: bytes
    errors: bytes
    n_lines: int
    n_bytes: int
    n_completed: int
    n_failed: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Page(Generic[_Object]):
    """A part of a list.

    Attributes:
        items: at most as many as were asked for.
        has_more: whether the list goes on after the last item.
    """

    items: tuple[_Object, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """What metrics show of the whole storage.

    Attributes:
        batches: number of batches of each status.
        oldest_at: when the oldest batch that has not ended was created; None if all have ended.
        next_expiry_at: when the next window of a batch that has not ended is over; None likewise.
        stored_bytes: bytes of all files, unfinished uploads and results included.
    """

    batches: Mapping[Status, int]
    oldest_at: int | None
    next_expiry_at: int | None
    stored_bytes: int
