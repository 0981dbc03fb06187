"""`matryo serve`: get the models ready, then serve them until a signal to stop."""

from __future__ import annotations

import gc
import logging
import shlex
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

from matryo.assembly.batch import check_batch
from matryo.assembly.keys import load_keys
from matryo.assembly.models import core_use, equal_part, make_ready, ready_engines, resolve_models
from matryo.catalog.catalog import open_catalog
from matryo.catalog.manifest import Manifest
from matryo.commands.exposure import check_tls, scheme_of, warn_of_exposure
from matryo.core import logging as logs
from matryo.core.errors import MatryoError
from matryo.core.memory import tune_allocator
from matryo.core.metrics import Metrics
from matryo.core.progress import SILENT, SilentReporter
from matryo.core.settings import Settings
from matryo.core.signals import held_back, outlive_others
from matryo.core.steps import Steps
from matryo.core.systemd import Reporter, take_sockets
from matryo.grpc.listening import check_installed, held_port
from matryo.http.listening import Listener, bind_all
from matryo.main import build_server, create_app

log = logging.getLogger("matryo")


def run(settings: Settings) -> None:
    """Serve the models of `settings`; returns after SIGTERM or SIGINT.

    Raises:
        SetupError: anything that keeps a model from being served.
        Stopped: SIGTERM or SIGINT came before the server was ready.
        SystemExit: a process of the server failed.
    """
    logs.configure(settings.log_level, settings.log_format)
    outlive_others()
    report = Reporter()
    with ExitStack() as stack:
        # First of all: a port in use should not be found out after a download.
        with held_back(signal.SIGTERM, signal.SIGINT):
            listener = bind_all(settings, settings.uds, take_sockets())
            stack.callback(listener.close)
            listener.scheme = scheme_of(settings)
            settings = _with_grpc_port(settings, stack)
        load_keys(settings)  # nor should a wrong file of keys, or of TLS, or a wrong database
        check_tls(settings)
        check_batch(settings)

        def on_ready() -> None:
            listener.publish()
            _announce(settings, listener)
            report.ready()

        if settings.processes > 1:
            from matryo.commands.processes import run_processes

            gc.enable()  # this process starts no model
            steps = Steps()
            settings = make_ready(settings, steps)
            serve = partial(serve_on, steps=steps)
            run_processes(
                settings, listener, serve, on_ready, equal_part(settings), report.stopping
            )
        else:
            serve_on(settings, listener, on_ready, on_stop=report.stopping)
    log.info("stopped")


def serve_on(
    settings: Settings,
    listener: Listener,
    on_ready: Callable[[], None],
    cores: int | None = None,
    steps: Steps | None = None,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve on bound sockets in this process.

    Args:
        settings: of the server.
        listener: bound, not listening.
        on_ready: called once the server answers.
        cores: that this process uses; None for its part of those that it may use.
        steps: what was done before, for the metrics.
        on_stop: called when the server begins to stop.

    Raises:
        SetupError: a model cannot be loaded, or the sockets cannot listen.
    """
    gc.disable()  # until the server is ready
    tune_allocator()
    logs.configure(settings.log_level, settings.log_format)
    steps, loading = steps or Steps(), ExitStack()
    loading.enter_context(steps.timed("load"))
    # Several processes would say the same several times.
    reporter = _LoadLines() if logs.is_on_terminal() and cores is None else SILENT
    engines = ready_engines(settings, core_use(settings, cores), steps, reporter)
    application = create_app(settings, engines, cores)
    metrics: Metrics = application.state.context.metrics
    logs.on_drop(metrics.log_lines_dropped.inc)

    def ready() -> None:
        # What the start made stays for good: without a look at it, no collection takes long.
        gc.freeze()
        gc.enable()
        loading.close()
        metrics.show_start(steps)
        on_ready()

    build_server(application, listener, settings, on_ready=ready, on_stop=on_stop).run()


class _LoadLines(SilentReporter):
    """A line of the log for each model that is loaded."""

    def step(self, what: str) -> AbstractContextManager[None]:
        """Log the step."""
        log.info("%s", what)
        return nullcontext()


def _with_grpc_port(settings: Settings, stack: ExitStack) -> Settings:
    """The settings with the number of the gRPC port, which is held until the stack ends."""
    if settings.grpc_port is None:
        return settings
    check_installed()
    port = stack.enter_context(held_port(settings.host, settings.grpc_port))
    return settings.model_copy(update={"grpc_port": port})


def _announce(settings: Settings, listener: Listener) -> None:
    catalog = open_catalog(settings)
    models = [catalog.manifest(model_id) for model_id in resolve_models(settings).model]
    served = ", ".join(
        f"{model.id} ({model.precision_for(settings.precision)})" for model in models
    )
    log.info("ready: %s on %s", served, listener.path or listener.url)
    if logs.is_on_terminal() and log.isEnabledFor(logging.INFO):
        warn_of_exposure(settings, listener)
        _show_panel(settings, listener, models)
        return
    if listener.beside:
        log.info("metrics on %s/metrics", listener.beside.url)
    if settings.grpc_port is not None:
        log.info("gRPC on %s, port %d", settings.host, settings.grpc_port)
    warn_of_exposure(settings, listener)
    log.info("try: %s", _call(settings, listener))


def _show_panel(settings: Settings, listener: Listener, models: list[Manifest]) -> None:
    """Show on the terminal what is served; a server serves, whether that succeeds or not."""
    from matryo.commands.panel import start_panel

    try:
        logs.show(start_panel(settings, listener, models, _call(settings, listener)))
    except (MatryoError, OSError) as exc:  # a model was removed from the store
        log.warning("no start panel: %s", exc)
    gc.freeze()  # the library that draws stays, too


def _call(settings: Settings, listener: Listener) -> str:
    """A command that calls the server, to try it."""
    path = listener.path
    over = f"--unix-socket {shlex.quote(str(path))} " if path else ""
    cert = "--cert YOUR_CERT --key YOUR_KEY " if settings.tls_client_ca_file else ""
    key = "-H 'Authorization: Bearer YOUR_KEY' " if settings.has_keys else ""
    return (
        f"curl {over}{cert}{listener.url}/v1/embeddings {key}-H 'Content-Type: application/json' "
        """-d '{"input": "The sky is blue."}'"""
    )
