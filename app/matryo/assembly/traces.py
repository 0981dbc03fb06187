"""Which tracer do these settings mean?"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncGenerator

from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings
from matryo.core.tracing import NO_TRACER, Tracer

_LAST_SPANS_S = 3.0  # part of the margin that a process has after its grace


def build_tracer(settings: Settings, version: str) -> Tracer:
    """The tracer of this process; one that does nothing without MATRYO_TRACING.

    Args:
        settings: as for a server.
        version: of the service, which every span has.

    Raises:
        SettingsInvalid: a package is missing, or a variable of OpenTelemetry cannot be used.
    """
    if not settings.tracing:
        return NO_TRACER
    # FastAPI depends on the package opentelemetry-api, which has none of these.
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.common"):
        if not _is_installed(package):
            raise SettingsInvalid(
                f"MATRYO_TRACING is true, but the package of {package} is not installed. Install "
                "it with: pip install 'matryo[otel]'"
            )
    from matryo.core.otel.export import build_otel_tracer

    return build_otel_tracer(version)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # nor is its parent
        return False


@contextlib.asynccontextmanager
async def exporting(tracer: Tracer) -> AsyncGenerator[None, None]:
    """Export what a tracer has left at the end of the block, within `_LAST_SPANS_S`."""
    try:
        yield
    finally:
        if tracer.is_on:
            await asyncio.to_thread(tracer.close, _LAST_SPANS_S)
