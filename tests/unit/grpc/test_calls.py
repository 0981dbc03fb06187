"""What a call does when its caller leaves at the worst moment."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("grpc")

import grpc
from prometheus_client import CollectorRegistry

from matryo.core.budget import Budget
from matryo.core.metrics import Metrics
from matryo.grpc.calls import Door, Limits, handlers_of

SERVICE = "inference.GRPCInferenceService"


class Gone:
    """The context of a call whose caller leaves while the answer is written."""

    def invocation_metadata(self) -> tuple[()]:
        """None."""
        return ()

    def time_remaining(self) -> None:
        """No deadline."""

    async def read(self) -> bytes:
        """An empty message."""
        return b""

    async def write(self, content: bytes) -> None:
        """Fail as the library does."""
        raise grpc.aio.InternalError("Failed execute_batch")


async def test_a_caller_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that cannot be written any more is a cancelled call, and no fault of the server."""
    metrics = Metrics(CollectorRegistry())
    service = cast("Any", SimpleNamespace(budget=Budget()))
    limits = Limits(timeout_s=1, max_texts=1, max_calls=1)
    door = Door(service, metrics, limits, "1", log_client=False, draining=asyncio.Event())

    async def answer(call: Any, message: Any) -> bytes:
        return b"content"

    handlers = handlers_of(door, SERVICE, {"ServerLive": answer}, keyless=["ServerLive"])
    handler = cast("Any", handlers[SERVICE]["ServerLive"])
    with pytest.raises(asyncio.CancelledError):
        await handler.stream_stream(None, Gone())
    labels = {"door": "operations", "route": f"/{SERVICE}/ServerLive", "model": ""}
    sample = metrics.registry.get_sample_value
    assert sample("matryo_requests_total", labels | {"status": "CANCELLED"}) == 1
    assert sample("matryo_aborts_total", {"reason": "hang_up"}) == 1
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]
