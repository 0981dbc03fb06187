"""What the routes work with: made once by `matryo.main`, carried in the application's state."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from starlette.requests import Request

from matryo.core.metrics import Metrics
from matryo.scheduler import Scheduler
from matryo.service.inputs import Defaults, Directory
from matryo.service.keys import KeyRing
from matryo.service.token_arrays import TokenDecoder


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request's body."""

    max_body_bytes: int
    body_timeout_s: float


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a request needs.

    Attributes:
        tokenizers: threads that tokenise and encode, so that the event loop does neither.
        decoder: turns token arrays into texts; None where they are the served model's own.
    """

    directory: Directory
    defaults: Defaults
    limits: Limits
    keys: KeyRing
    scheduler: Scheduler
    tokenizers: Executor
    metrics: Metrics
    decoder: TokenDecoder | None


def context_of(request: Request) -> Context:
    """The application's context."""
    return request.app.state.context
