"""What the routes work with: made once by `app.main`, carried in the application's state."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from starlette.requests import Request

from app.api.auth import KeyRing
from app.api.inputs import Defaults, Directory
from app.api.tokens import TokenDecoder
from app.core.metrics import Metrics
from app.scheduler import Scheduler


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
