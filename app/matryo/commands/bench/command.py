"""What `matryo bench` measures, in which order, and for how long."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import click

import matryo
from matryo.assembly.models import make_ready, ready_engines
from matryo.commands.bench.clients import Client, Result, Target, body, load, time_of
from matryo.commands.bench.engine import best_rate, lone_ms
from matryo.commands.bench.machine import cpu_class, cpu_name
from matryo.commands.bench.report import Engine as EngineFigures
from matryo.commands.bench.report import Load, Report, table
from matryo.commands.bench.report import Server as ServerFigures
from matryo.commands.bench.sample import Sample, make_sample
from matryo.commands.bench.server import MeasuredServer
from matryo.core.cores import available_cores
from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings
from matryo.engine import Engine

_MOST_TEXTS, _BULK_CLIENTS, _QUERY_CLIENTS = 16, 4, 16
_FEWEST_ANSWERS = 6  # of each bulk client, on a machine as slow as the probe
_PROBE_TEXTS = 4
_SHARES = (0.3, 0.6, 0.9)
# Parts of the time, which add up to 1.
_LENGTH, _LONE, _MIXED = 0.045, 0.015, 0.09
_BULK, _QUERY, _MOST, _LOAD, _BESIDE = 0.13, 0.09, 0.11, 0.1, 0.1
_WARM_UP = 0.15  # of each measurement over HTTP, before it counts


def run(settings: Settings, *, seconds: float, url: str | None, as_json: bool) -> None:
    """Measure, and print a table or JSON.

    Args:
        settings: as for a server; the first model is the one.
        seconds: of all measurements together.
        url: base URL of a server that runs already, such as `http://host:8080/v1`, which is
            measured in place of one of this machine; OPENAI_API_KEY is its key.
        as_json: print one JSON object.

    Raises:
        SettingsInvalid: the URL is none, or its server does not answer as it should.
        SetupError: the model cannot be made ready.
    """
    target = _target(url) if url else None
    settings = make_ready(settings)
    (engine, *others) = ready_engines(settings)
    for other in others:
        other.close()
    sample = make_sample(engine)
    figures: EngineFigures | None = None
    if target is None:
        figures = _measured_engine(engine, sample, seconds)
    facts = engine.manifest.id, engine.precision, engine.fingerprint
    del engine  # its weights are no part of the server's memory, but of the machine's
    if target:
        server = _measured_server(target, sample, facts[0], seconds)
    else:
        server = _own_server(settings, sample, facts[0], seconds)
    report = Report(
        version=matryo.__version__,
        model=facts[0],
        precision=facts[1],
        fingerprint=facts[2],
        cpu=cpu_name(),
        cpu_class=cpu_class(),
        cores=available_cores(),
        seconds=seconds,
        engine=figures,
        server=server,
    )
    click.echo(json.dumps(report, indent=1) if as_json else table(report))


def _target(url: str) -> Target:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise SettingsInvalid(f"--url {url} is no base URL. Give one like http://host:8080/v1.")
    key = os.environ.get("OPENAI_API_KEY")
    headers = (("Authorization", f"Bearer {key}"),) if key else ()
    path = parts.path.rstrip("/") + "/embeddings"
    return Target(port, parts.hostname, path, parts.scheme == "https", headers)


def _measured_engine(engine: Engine, sample: Sample, seconds: float) -> EngineFigures:
    _say("the engine alone")
    return EngineFigures(
        tokens_per_s=best_rate(engine, sample.document_ids, seconds * _MIXED),
        query_ms=lone_ms(engine, sample.query_ids, seconds * _LONE),
        lengths=[
            {
                "tokens": n_tokens,
                "tokens_per_s": best_rate(engine, texts, seconds * _LENGTH, sizes=(8,)),
                "lone_ms": lone_ms(engine, texts, seconds * _LONE),
            }
            for n_tokens, texts in sample.by_length.items()
        ],
    )


def _own_server(settings: Settings, sample: Sample, model: str, seconds: float) -> ServerFigures:
    with MeasuredServer(settings) as server:
        at_rest = server.resident_mb()
        figures = _measured_server(Target(server.port), sample, model, seconds)
        figures["ready_s"] = server.ready_s
        figures["rss_mb"], figures["peak_rss_mb"] = at_rest, server.resident_mb(peak=True)
        return figures


def _measured_server(target: Target, sample: Sample, model: str, seconds: float) -> ServerFigures:
    def measure(what: str, part: float, *clients: Client) -> dict[str, Result]:
        _say(what)
        length = seconds * part
        found = load(target, clients, seconds=length * (1 - _WARM_UP), warm_up_s=length * _WARM_UP)
        _check(target, found)
        return found

    n_texts = _texts_of_request(target, sample, model, seconds * _BULK)
    bulk, query = _bulk(sample, model, n_texts), _query(sample, model)
    in_bulk = measure("bulk", _BULK, *bulk)["bulk"]
    alone = measure("a lone query", _QUERY, query)["query"]
    most = measure("as many queries as 16 connections send", _MOST, *[query] * _QUERY_CLIENTS)
    most_per_s = most["query"].requests_per_s
    loads: list[Load] = []
    for share in _SHARES:
        rate = share * most_per_s / _QUERY_CLIENTS
        paced = _query(sample, model, rate)
        found = measure(f"queries at {share:.0%}", _LOAD, *[paced] * _QUERY_CLIENTS)["query"]
        loads.append(
            {
                "share": share,
                "requests_per_s": found.requests_per_s,
                "p50_ms": found.quantile_ms(0.5),
                "p90_ms": found.quantile_ms(0.9),
                "p99_ms": found.quantile_ms(0.99),
                "failed": sum(found.statuses.values()) - found.statuses.get(200, 0),
            }
        )
    beside = measure("queries beside bulk", _BESIDE, *bulk, query)["query"]
    return ServerFigures(
        ready_s=None,
        rss_mb=None,
        peak_rss_mb=None,
        bulk_texts=n_texts,
        bulk_tokens_per_s=in_bulk.tokens_per_s,
        query_p50_ms=alone.quantile_ms(0.5),
        queries_per_s=most_per_s,
        load=loads,
        beside_bulk_p50_ms=beside.quantile_ms(0.5),
        beside_bulk_p99_ms=beside.quantile_ms(0.99),
    )


def _texts_of_request(target: Target, sample: Sample, model: str, seconds: float) -> int:
    """How many texts a bulk request may have, so that enough of them are answered in time.

    Raises:
        SettingsInvalid: the server cannot be reached, or refuses the request.
    """
    _say("the speed of the server, roughly")
    spent_s = time_of(target, _request(sample.documents[:_PROBE_TEXTS], model, "document"))
    n_requests = _BULK_CLIENTS * _FEWEST_ANSWERS
    return min(_MOST_TEXTS, max(1, int(seconds * _PROBE_TEXTS / (n_requests * spent_s))))


def _bulk(sample: Sample, model: str, n_texts: int) -> list[Client]:
    starts = range(0, len(sample.documents), n_texts)
    bodies: list[bytes] = []
    tokens: list[int] = []
    for start in starts:
        some = slice(start, start + n_texts)
        texts = sample.documents[some]
        bodies.append(_request(texts, model, "document"))
        tokens.append(sum(map(len, sample.document_ids[some])))
    return [
        Client("bulk", tuple(bodies[n::_BULK_CLIENTS]), tuple(tokens[n::_BULK_CLIENTS]))
        for n in range(_BULK_CLIENTS)
    ]


def _query(sample: Sample, model: str, rate: float | None = None) -> Client:
    bodies = tuple(_request(text, model, "query") for text in sample.queries)
    return Client("query", bodies, tuple(map(len, sample.query_ids)), rate=rate)


def _request(texts: str | Sequence[str], model: str, input_type: str) -> bytes:
    fields = {"encoding_format": "base64", "input_type": input_type}
    return body(texts, model=model, truncate=True, **fields)


def _check(target: Target, found: dict[str, Result]) -> None:
    """Refuse figures of a server that answered nothing as it should.

    Raises:
        SettingsInvalid: no request of some clients was answered with 200.
    """
    for name, result in found.items():
        if not result.latencies_s:
            statuses = ", ".join(f"{n} x {status}" for status, n in result.statuses.items())
            raise SettingsInvalid(
                f"{target.host}:{target.port}{target.path}: no {name} request was answered with "
                f"200 ({statuses or 'none was answered in time'}). Give more --seconds, or look at "
                "the server's log."
            )


def _say(what: str) -> None:
    """Say on a terminal what is measured now."""
    if sys.stderr.isatty():
        click.echo(f"measuring: {what} ...", err=True)
