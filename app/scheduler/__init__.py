"""Which texts run when: admission, batching, cancellation, supervision.

The last layer that knows asyncio; below it, plain code on worker threads.
"""

from app.scheduler.policy import BatchLimits
from app.scheduler.scheduler import Scheduler, SchedulerConfig

__all__ = ["BatchLimits", "Scheduler", "SchedulerConfig"]
