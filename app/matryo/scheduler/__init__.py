"""Which texts run when: admission, batching, cancellation, supervision.

The lowest layer that knows asyncio; the layers below are plain code on worker threads.
"""

from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import ANYONE, Priority, Tenant
from matryo.scheduler.scheduler import Scheduler

__all__ = ["ANYONE", "Priority", "Scheduler", "SchedulerConfig", "Tenant"]
