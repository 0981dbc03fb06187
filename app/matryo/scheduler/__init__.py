"""Which texts run when: admission, batching, cancellation, supervision.

The last layer that knows asyncio; below it, plain code on worker threads.
"""

from matryo.scheduler.policy import BatchLimits
from matryo.scheduler.scheduler import Scheduler, SchedulerConfig

__all__ = ["BatchLimits", "Scheduler", "SchedulerConfig"]
