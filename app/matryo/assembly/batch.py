"""Who works on batches in this server, by its settings?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from matryo.batch.job import JobConfig
from matryo.batch.lines import line_limits
from matryo.batch.runner import Runner, RunnerConfig
from matryo.batch.storage import Storage
from matryo.core.metrics import Metrics
from matryo.core.settings import Settings
from matryo.http.openai.lines import BatchLines
from matryo.service import Service


def build_runner(
    settings: Settings, storage: Storage, service: Service, metrics: Metrics
) -> Runner:
    """A runner of the storage's batches; enter `working` to start it."""
    door = BatchLines(service, settings.max_body_bytes, settings.unknown_fields)
    limits = line_limits(settings.batch_max_lines, settings.max_body_bytes)
    config = RunnerConfig(JobConfig(limits, settings.batch_lease_s))
    return Runner(storage, door, service, metrics, config)


@asynccontextmanager
async def working(runner: Runner) -> AsyncGenerator[None, None]:
    """Let a runner work until the block ends; `Runner.drain` before that ends a window in peace."""
    task = asyncio.create_task(runner.run(), name="matryo-batches")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
