"""What an operator chooses of the scheduler, and the scheduler's own taste."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds, times and costs. What depends on an engine is in the engine's own limits.

    A request over one of the first three bounds is refused, unless nothing else is admitted. None
    stands for no bound, which suits callers of the same process.

    Attributes:
        queue_tokens: most tokens that are admitted and not computed.
        max_requests: most requests that are admitted and not answered.
        max_wait_s: most seconds that a request may expect to wait for its answer. A caller that
            announced a shorter patience is held to that patience.
        workers: concurrent runs.
        batch_s: seconds that one batch should take.
        ready_interval_s: the service is ready if every model ran within this many seconds. A model
            that did not run for a third of them is run by the heartbeat.
        starve_s: bulk that had nothing computed for this many seconds goes before queries, and a
            request goes before others of its kind and tenant. Of two tenants that wait, neither
            gets more seconds of work than these before the other one has its due.
        query_share: part of a batch's time that a batch with a query in it may take, because the
            query is answered only when its batch is done.
        joining_cost: a text joins a batch if the batch then costs at most this many times what the
            text would cost alone, beside the fixed cost of a run. At least 1.
        recent_s: seconds for which a tenant counts as active after it was last seen, and over which
            its use of the workers is remembered.
        background_share: part of the workers' time that batch requests get beside endless online
            work.
        restart_s: pause before a worker that died starts anew, and between two tries of the
            heartbeat.
    """

    queue_tokens: int | None = None
    max_requests: int | None = None
    max_wait_s: float | None = None
    workers: int = 1
    batch_s: float = 0.2
    ready_interval_s: float = 30.0
    starve_s: float = 1.0
    query_share: float = 0.75
    joining_cost: float = 1.25
    recent_s: float = 10.0
    background_share: float = 0.05
    restart_s: float = 0.2
