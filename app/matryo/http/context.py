"""What the routes work with: made once by `matryo.main`, carried in the application's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from matryo.core.metrics import Metrics
from matryo.service import Service


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of a request's body.

    Attributes:
        max_bytes: of one body.
        timeout_s: for all of one body to arrive.
    """

    max_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Context:
    """What every route needs.

    Attributes:
        unknown_fields: what becomes of a body's fields that nobody knows.
        metrics_key: that a scrape shows; None where none is asked for.
    """

    service: Service
    body: BodyLimits
    unknown_fields: Literal["warn", "refuse"]
    metrics: Metrics
    metrics_key: str | None = None


def context_of(request: Request) -> Context:
    """The application's context."""
    return request.app.state.context
