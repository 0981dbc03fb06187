"""What an operator chooses of the scheduler, and the scheduler's own taste."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds, times and costs. What depends on an engine is in the engine's own limits.

    Attributes:
        workers: concurrent runs.
        queue_tokens: most tokens that are admitted and not computed. A request over this bound is
            refused, unless nothing else is admitted.
        result_bytes: most bytes of the results of admitted requests, likewise.
        batch_s: seconds that one batch should take.
        ready_interval_s: the service is ready if every model ran within this many seconds. A model
            that did not run for a third of them is run by the heartbeat.
        max_wait_s: bulk that had nothing computed for this many seconds goes before queries, and a
            request goes before others of its kind.
        query_share: part of a batch's time that a batch with a query in it may take, because the
            query is answered only when its batch is done.
        joining_cost: a text joins a batch if the batch then costs at most this many times what the
            text would cost alone, beside the fixed cost of a run.
        restart_s: pause before a worker that died starts anew, and between two tries of the
            heartbeat.
    """

    workers: int = 1
    queue_tokens: int = 1_000_000
    result_bytes: int = 1 << 28
    batch_s: float = 0.2
    ready_interval_s: float = 30.0
    max_wait_s: float = 1.0
    query_share: float = 0.75
    joining_cost: float = 1.25
    restart_s: float = 0.2
