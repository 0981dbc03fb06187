"""The panel that `matryo serve` shows on a terminal once it is ready: what is served, and where."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import matryo
from matryo.assembly.models import core_use
from matryo.assembly.service import operator_defaults
from matryo.catalog.manifest import Manifest
from matryo.core.drawing import console
from matryo.core.printable import escaped
from matryo.core.settings import Settings
from matryo.http.listening import Listener
from matryo.service.choices import default_dimensions_of
from matryo.store.artifact import find_artifact
from matryo.store.layout import open_store

_MOST_COLUMNS = 100


def start_panel(
    settings: Settings, listener: Listener, models: Sequence[Manifest], call: str
) -> str:
    """The panel as text with the terminal's colours, and the command to try below it.

    Args:
        settings: of the server.
        listener: where the server listens.
        models: that are served, the default first.
        call: a command that calls the server. No line is broken into it, so that it can be copied.

    Raises:
        SetupError: an artefact is gone by now.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in (*_models(settings, models), *_addresses(settings, listener)):
        grid.add_row(name, Text(escaped(value)))
    grid.add_row("threads", Text(_threads(settings)))
    grid.add_row("keys", Text(_keys(settings)))
    out = console(sys.stderr)
    panel = Panel(
        grid,
        title=f"Matryo {matryo.__version__} is ready",
        title_align="left",
        subtitle="Ctrl-C stops it",
        subtitle_align="right",
        border_style="green",
        padding=(0, 1),
        width=min(out.width, _MOST_COLUMNS),
    )
    with out.capture() as captured:
        out.print(Text(""), panel, Text(""), Text("try", style="bold"), sep="\n")
    return f"{captured.get()}{call}\n"


def _models(settings: Settings, models: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """What is served, two lines for each model."""
    store, defaults = open_store(settings), operator_defaults(settings)
    for manifest in models:
        precision = manifest.precision_for(settings.precision)
        native = manifest.output.dimensions.native
        size = default_dimensions_of(manifest, defaults)
        default = f", {size} by default" if size != native else ""
        yield "model", f"{manifest.id}, {precision}, {native} dimensions{default}"
        yield "fingerprint", find_artifact(store, manifest, precision).record.fingerprint


def _addresses(settings: Settings, listener: Listener) -> Iterator[tuple[str, str]]:
    """Where the server answers, a line for each door that has an address of its own."""
    if path := listener.path:
        yield "address", f"Unix socket {path}"
    else:
        beyond = listener.open_address()
        yield "address", listener.url + (f", other machines on {beyond}" if beyond else "")
        if settings.page:
            yield "page", f"{listener.url}/"
    if listener.scheme == "https":
        asked = ", clients need a certificate" if settings.tls_client_ca_file else ""
        yield "TLS", f"{settings.tls_cert_file}{asked}"
    if settings.grpc_port is not None:
        yield "gRPC", f"{settings.host}, port {settings.grpc_port}"
    if listener.beside:
        yield "metrics", f"{listener.beside.url}/metrics"
    if settings.root_path:
        yield "prefix", f"{settings.root_path}, behind a proxy"


def _threads(settings: Settings) -> str:
    """How the cores are used."""
    use = core_use(settings)
    workers = f"{use.workers} runs at a time" if use.workers > 1 else "1 run at a time"
    threads = f"{use.threads} threads" if use.threads > 1 else "1 thread"
    each = " each" if use.workers > 1 else ""
    alone = (
        f"; a run that is alone has {use.lone_threads}" if use.lone_threads > use.threads else ""
    )
    processes = f"{settings.processes} processes, in each " if settings.processes > 1 else ""
    return f"{processes}{workers}, {threads}{each}{alone}"


def _keys(settings: Settings) -> str:
    return "asked of every caller" if settings.has_keys else "none asked"
