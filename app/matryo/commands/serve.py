"""`matryo serve`: get the models ready, then serve them until told to stop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

from matryo.assembly import make_ready, ready_engines
from matryo.catalog.catalog import open_catalog
from matryo.commands.processes import run_processes
from matryo.core import logging as logs
from matryo.core.memory import tune_allocator
from matryo.core.settings import Settings, unknown_settings
from matryo.http.server import bind, build_server
from matryo.main import create_app

log = logging.getLogger("matryo")


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a bind
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(settings: Settings) -> None:
    """Serve the models of `settings`; returns after SIGTERM or SIGINT.

    Raises:
        SetupError: anything that keeps a model from being served.
    """
    logs.configure(settings.log_level, settings.log_format)
    for sentence in unknown_settings():
        log.warning(sentence)
    # First of all: a port in use should not be found out after a download.
    listener = bind(settings.host, settings.port)
    announce = partial(_announce, settings, local_url(*listener.getsockname()[:2]))
    if settings.processes > 1:
        make_ready(settings)
        run_processes(settings, listener, serve_on, announce)
    else:
        serve_on(settings, listener, announce)
    log.info("stopped")


def serve_on(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve on a bound socket in this process.

    Raises:
        SetupError: a model cannot be loaded.
    """
    tune_allocator()
    logs.configure(settings.log_level, settings.log_format)
    engines = ready_engines(settings)
    application = create_app(settings, engines)

    def drain(grace_s: float) -> None:
        log.info("stopping: running requests get %g s", grace_s)
        application.state.context.service.drain(grace_s)

    server = build_server(application, grace_s=settings.grace_s, on_ready=on_ready, on_drain=drain)
    server.run(sockets=[listener])


def _announce(settings: Settings, url: str) -> None:
    catalog = open_catalog(settings)
    models = [catalog.manifest(model_id) for model_id in settings.model]
    served = ", ".join(
        f"{model.id} ({model.precision_for(settings.precision)})" for model in models
    )
    log.info("ready: %s on %s", served, url)
    key = "-H 'Authorization: Bearer YOUR_KEY' " if settings.api_keys else ""
    log.info(
        "try: curl %s/v1/embeddings %s-H 'Content-Type: application/json' "
        """-d '{"input": "The sky is blue."}'""",
        url,
        key,
    )
