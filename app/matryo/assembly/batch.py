"""Which storage and which runner of the Batch API do these settings mean?"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from matryo.core.errors import SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.settings import Settings
from matryo.service import Service

if TYPE_CHECKING:
    from matryo.batch.runner import Runner
    from matryo.batch.storage import Storage

log = logging.getLogger("matryo")

_LAST_WINDOWS_S = 5.0
_RESTART_S = 30.0


def open_batch(settings: Settings) -> Storage | None:
    """The storage of the Batch API, to be closed by the caller; None if that API is off.

    Raises:
        SettingsInvalid: a package is missing, or the folder, the database or the store cannot be
            used.
    """
    if not settings.batch:
        return None
    if importlib.util.find_spec("python_multipart") is None:  # reads uploads
        raise SettingsInvalid(
            "MATRYO_BATCH is true, but the package python-multipart is not installed. Install it "
            "with: pip install 'matryo[batch]'"
        )
    # Loaded for a server with a Batch API alone, like the modules below.
    from matryo.batch.storage import open_storage

    return open_storage(settings)


def check_batch(settings: Settings) -> None:
    """Refuse a storage that cannot be used, before anything costs.

    Raises:
        SettingsInvalid: as `open_batch`.
    """
    if storage := open_batch(settings):
        storage.close()


def build_runner(
    settings: Settings, storage: Storage, service: Service, metrics: Metrics
) -> Runner:
    """What works on the batches of a storage; see `working`."""
    from matryo.batch.job import JobConfig
    from matryo.batch.lines import line_limits
    from matryo.batch.runner import Runner, RunnerConfig
    from matryo.http.openai.lines import BatchLines

    lines = BatchLines(service, settings.max_body_bytes, settings.unknown_fields)
    limits = line_limits(settings.batch_max_lines, settings.max_body_bytes)
    config = RunnerConfig(JobConfig(limits, settings.batch_lease_s))
    return Runner(storage, lines, service, metrics, config)


@asynccontextmanager
async def working(runner: Runner) -> AsyncGenerator[None, None]:
    """Work on batches while the block runs; enter this inside the service."""
    task = asyncio.create_task(_work(runner))
    try:
        yield
    finally:
        await runner.drain(_LAST_WINDOWS_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _work(runner: Runner) -> None:
    """Run until the runner is drained; a bug in one batch must not end the work on all."""
    while True:
        try:
            return await runner.run()
        except Exception:
            log.exception("batches: the work ended, and begins again in %g s", _RESTART_S)
            await asyncio.sleep(_RESTART_S)
