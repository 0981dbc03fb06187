"""Commands of a server: start one, ask one."""

from __future__ import annotations

import gc
import sys

import click

from matryo.cli.group import Serve
from matryo.cli.options import flag, settings_from, trust_option


@click.command(
    cls=Serve,
    epilog="""\b
Examples:
  matryo serve
  matryo serve --model all-minilm-l6-v2 --precision int8 --port 9000
  matryo serve --model all-minilm-l6-v2 --model nomic-embed-text-v1.5
  matryo serve --model ./my-fine-tune --host 0.0.0.0 --processes 2
  MATRYO_API_KEYS=sk-something matryo serve --uds /run/matryo.sock
""",
)
@flag("--model", "Model; give it again for more, the first is the default.", multiple=True)
@flag("--precision", "Numbers of the models: fp32, int8, q8, q4 or auto.")
@trust_option
@flag("--host", "Address to listen on; 0.0.0.0 for every one.")
@flag("--port", "Port to listen on; 0 for any free one.")
@flag("--grpc-port", "Port of the gRPC services; 0 for any free one.")
@flag("--uds", "Unix socket to listen on, in place of host and port.", metavar="PATH")
@flag("--tls-cert-file", "Certificate chain, a PEM file, to speak HTTPS.", metavar="PATH")
@flag("--tls-key-file", "Private key of the certificate, a PEM file.", metavar="PATH")
@flag("--tls-client-ca-file", "Authorities of clients' certificates, a PEM file.", metavar="PATH")
@flag("--root-path", "Prefix of every path behind a proxy.", metavar="PATH")
@flag("--processes", "Server processes on one socket.")
@flag("--log-format", "Log lines: text, json, or auto, which is text on a terminal.")
def serve(
    model: tuple[str, ...],
    **flags: str | bool | None,
) -> None:
    """Serve one model or several; pull and build them first if need be."""
    # Nearly all that a start makes stays. Looks for garbage would take a tenth of the start.
    gc.disable()
    try:
        settings = settings_from(model=model or None, **flags)
        from matryo.commands.serve import run

        run(settings)
    finally:
        gc.enable()


@click.command(
    epilog="""\b
Examples:
  matryo mcp --model all-minilm-l6-v2
  matryo mcp --model all-minilm-l6-v2 --transport http --port 9000
"""
)
@flag("--model", "Model; give it again for more, the first is the default.", multiple=True)
@flag("--precision", "Numbers of the models: fp32, int8, q8, q4 or auto.")
@trust_option
@click.option(
    "--transport",
    type=click.Choice(["stdio", "http"]),
    default="stdio",
    show_default=True,
    help="Standard input and output, for a client that starts this command; or HTTP, at /mcp.",
)
@flag("--host", "With http: address to listen on; 0.0.0.0 for every one.")
@flag("--port", "With http: port to listen on; 0 for any free one.")
@flag("--log-format", "Log lines: text, json, or auto, which is text on a terminal.")
def mcp(model: tuple[str, ...], transport: str, **flags: str | bool | None) -> None:
    """Give assistants tools that compare texts, by the Model Context Protocol (MCP)."""
    settings = settings_from(model=model or None, **flags)
    from matryo.commands.mcp import run

    run(settings, over_http=transport == "http")


@click.command(
    epilog="""\b
Examples:
  matryo health
  matryo health --live --port 9000
  matryo health --uds /run/matryo.sock --timeout 5
"""
)
@click.option(
    "--ready/--live",
    "is_ready",
    default=True,
    help="Ask whether the server can embed (/readyz, the default), or only whether it answers.",
)
@flag("--host", "Address of the server.")
@flag("--port", "Port of the server.")
@flag("--uds", "Unix socket of the server, in place of host and port.", metavar="PATH")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds that each step of the request may take.",
)
def health(is_ready: bool, timeout: float, **flags: str | None) -> None:
    """Ask the server on this machine for its health: exit status 0 if it is well, else 1.

    Reads the same settings as the server, and asks no proxy.
    """
    from matryo.commands.health import ask

    found = ask(settings_from(**flags), "ready" if is_ready else "live", timeout)
    click.echo(found.sentence, err=not found.is_well)
    if not found.is_well:
        sys.exit(1)
