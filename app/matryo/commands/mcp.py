"""`matryo mcp`: tools for assistants, over standard input and output or over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import BinaryIO

import matryo
from matryo.assembly.keys import load_keys
from matryo.assembly.models import ready_engines
from matryo.assembly.service import build_service
from matryo.assembly.traces import build_tracer, exporting
from matryo.commands.exposure import check_tls, scheme_of, warn_of_exposure
from matryo.core import logging as logs
from matryo.core.errors import SettingsInvalid
from matryo.core.fixed import fixed
from matryo.core.memory import tune_allocator
from matryo.core.settings import Settings
from matryo.core.signals import held_back, outlive_others
from matryo.core.steps import Steps
from matryo.engine import Engine
from matryo.http.listening import bind_all

log = logging.getLogger("matryo")


def run(settings: Settings, *, over_http: bool) -> None:
    """Serve tools until the client's end of input, or a signal to stop.

    Args:
        settings: as for a server; those of sockets count over HTTP alone.
        over_http: listen, in place of serving the client that started this process.

    Raises:
        SettingsInvalid: the SDK is missing, or the address cannot be used.
        SetupError: anything that keeps a model from being served.
        Stopped: a signal to stop came; over HTTP, before the server was ready.
    """
    if importlib.util.find_spec("mcp") is None:
        if bundle := fixed().where:
            raise SettingsInvalid(
                f"{bundle} was made without MCP. Make the file again on a machine with matryo[mcp]."
            )
        raise SettingsInvalid(
            "matryo mcp needs the SDK of the Model Context Protocol. Install it with: "
            "pip install 'matryo[mcp]'"
        )
    logs.configure(settings.log_level, settings.log_format)
    logging.getLogger("mcp").setLevel(logging.WARNING)  # its other lines have ids of sessions
    tune_allocator()
    settings = settings.model_copy(update={"processes": 1, "grpc_port": None})
    if over_http:
        _serve_http(settings)
    else:
        _serve_client(settings)


def _serve_client(settings: Settings) -> None:
    from matryo.mcp.server import build_tools_server
    from matryo.mcp.stdio import private_streams, serve_client

    async def serve(engines: Sequence[Engine], streams: tuple[BinaryIO, BinaryIO]) -> None:
        tracer = build_tracer(settings, matryo.__version__)
        async with exporting(tracer), build_service(settings, engines, tracer=tracer) as service:
            server = build_tools_server(service, matryo.__version__)
            log.info("ready: %s on standard input and output", ", ".join(service.directory.ids))
            await serve_client(server, streams, settings.max_body_bytes)

    with private_streams() as streams:
        asyncio.run(serve(ready_engines(settings), streams))


def _serve_http(settings: Settings) -> None:
    from matryo.main import build_server, create_mcp_app
    from matryo.mcp.sessions import PATH

    outlive_others()
    with held_back(signal.SIGTERM, signal.SIGINT):
        listener = bind_all(settings)
        listener.scheme = scheme_of(settings)
    try:
        load_keys(settings)  # before a model is made ready
        check_tls(settings)
        steps, loading = Steps(), ExitStack()
        loading.enter_context(steps.timed("load"))
        application = create_mcp_app(settings, ready_engines(settings, None, steps))

        def on_ready() -> None:
            loading.close()
            application.state.context.metrics.show_start(steps)
            names = application.state.context.service.directory.ids
            log.info("ready: %s on %s%s", ", ".join(names), listener.url, PATH)
            warn_of_exposure(settings, listener)

        build_server(application, listener, settings, on_ready).run()
    finally:
        listener.close()
    log.info("stopped")
