"""What the routes work with: made once by `matryo.main`, carried in the application's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from starlette.requests import Request

from matryo.core.errors import BatchOff
from matryo.core.metrics import Metrics
from matryo.http.threads import Threads
from matryo.service import Service

if TYPE_CHECKING:
    from matryo.batch.storage import Storage

P = ParamSpec("P")
T = TypeVar("T")


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
class BatchDoor:
    """What the routes of the Batch API need beside the context.

    Attributes:
        storage: files and batches; `call` keeps its methods off the event loop.
        threads: run the storage's methods.
        max_file_bytes: of one file.
        min_rate: bytes a second at which a file must come on average.
        nudge: has whoever works on batches look at them now.
    """

    storage: Storage
    threads: Threads
    max_file_bytes: int
    min_rate: int
    nudge: Callable[[], None]

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a method of the storage returns."""
        return await self.threads.call(method, *args, **kwargs)

    def close(self) -> None:
        """Return once no call runs, and close the storage."""
        self.threads.close()
        self.storage.close()


@dataclass(frozen=True, slots=True)
class Context:
    """What every route needs.

    Attributes:
        unknown_fields: what becomes of a body's fields that nobody knows.
        metrics_key: that a scrape shows; None where none is asked for.
        batch: None where the Batch API is off.
    """

    service: Service
    body: BodyLimits
    unknown_fields: Literal["warn", "refuse"]
    metrics: Metrics
    metrics_key: str | None = None
    batch: BatchDoor | None = None

    @property
    def storage(self) -> Storage | None:
        """The storage of the Batch API; None where that API is off."""
        return self.batch.storage if self.batch else None


def context_of(request: Request) -> Context:
    """The application's context."""
    return request.app.state.context


def batch_door_of(request: Request) -> BatchDoor:
    """What the routes of the Batch API need.

    Raises:
        BatchOff: the operator has not turned the Batch API on.
    """
    door = context_of(request).batch
    if door is None:
        raise BatchOff
    return door
