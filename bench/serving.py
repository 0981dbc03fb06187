"""The cost of serving: an engine alone and a server, on the same real text, in one run.

    make bench
    .venv/bin/python -m bench.serving --model nomic-embed-text-v1.5 --seconds 20 --output out

Compare only numbers of one run. The rate of the engine alone is the best of several numbers of runs
and batch sizes, so the server cannot quite reach it. With `--llama FILE.gguf`, llama.cpp embeds the
same texts in the same run; llama-cpp-python must be installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.corpus import debian_pairs
from bench.service import Service
from matryo.assembly.models import load_engines, make_ready
from matryo.commands.bench.clients import Client, Result, Target, body, load
from matryo.commands.bench.engine import engine_rate
from matryo.core.cores import available_cores
from matryo.core.environment import load_settings
from matryo.engine import Engine, TokenIds

_TEXTS, _TEXTS_OF_REQUEST, _CLIENTS = 512, 16, 4
_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts and their token ids. Descriptions are the documents, synopses the queries."""

    documents: list[str]
    document_ids: list[TokenIds]
    queries: list[str]
    query_ids: list[TokenIds]

    def bulk(self) -> list[Client]:
        """Clients that index documents, with 16 documents in each request."""
        pieces = range(0, len(self.documents), _TEXTS_OF_REQUEST)
        bodies = [
            body(
                self.documents[start : start + _TEXTS_OF_REQUEST],
                encoding_format="base64",
                truncate=True,
            )
            for start in pieces
        ]
        tokens = [
            sum(map(len, self.document_ids[start : start + _TEXTS_OF_REQUEST])) for start in pieces
        ]
        return [
            Client("bulk", tuple(bodies[n::_CLIENTS]), tuple(tokens[n::_CLIENTS]))
            for n in range(_CLIENTS)
        ]

    def query(self, pause_s: float = 0.0) -> Client:
        """A client that sends one query after the other."""
        bodies = (body(q, encoding_format="base64", input_type="query") for q in self.queries)
        return Client("query", tuple(bodies), tuple(map(len, self.query_ids)), pause_s)


def read_sample(engine: Engine) -> Sample:
    """The texts of every run, with the token ids that this model has for them."""
    pairs = debian_pairs(3000)[:_TEXTS]
    documents = [text for _, text in pairs]
    queries = [query for query, _ in pairs[:_QUERIES]]

    def ids(texts: Sequence[str], prefix: str) -> list[TokenIds]:
        return [engine.cut(e.ids) for e in engine.tokenize([prefix + text for text in texts])]

    manifest = engine.manifest
    return Sample(
        documents,
        ids(documents, manifest.prefix("document")),
        queries,
        ids(queries, manifest.prefix("query")),
    )


def engine_alone(engine: Engine, sample: Sample, seconds: float) -> dict[str, float]:
    """The engine's best rate, and its latency for a query, without a server."""
    ways = [(runs, size) for runs in {1, available_cores()} for size in (4, 16)]
    rates = {
        f"{runs} x {size}": engine_rate(
            engine, sample.document_ids, seconds / len(ways), runs=runs, size=size
        )
        for runs, size in ways
    }
    native = engine.manifest.output.dimensions.native
    times: list[float] = []
    for ids in sample.query_ids:
        started = time.perf_counter()
        engine.embed([ids], [native])
        times.append(time.perf_counter() - started)
    return {
        "bulk_tokens_per_s": max(rates.values()),
        "query_p50_ms": 1000 * statistics.median(times),
    }


def served(
    service: Service, sample: Sample, seconds: float, load_points: Sequence[float]
) -> dict[str, Any]:
    """The clients' measurements: queries alone, bulk alone, both together, and queries by load."""

    def run(*clients: Client) -> dict[str, Result]:
        return load(Target(service.port), clients, seconds=seconds, warm_up_s=min(3.0, seconds / 4))

    idle = run(sample.query())["query"]
    bulk = run(*sample.bulk())["bulk"]
    mixed = run(*sample.bulk(), sample.query())
    curve = [
        {
            "clients": count,
            "requests_per_s": result.requests_per_s,
            "p50_ms": result.quantile_ms(0.5),
            "p99_ms": result.quantile_ms(0.99),
        }
        for count in load_points
        if (result := run(*[sample.query()] * int(count))["query"])
    ]
    return {
        "ready_s": service.ready_s,
        "rss_mb": service.rss_mb,
        "query_p50_ms": idle.quantile_ms(0.5),
        "bulk_tokens_per_s": bulk.tokens_per_s,
        "mixed_bulk_tokens_per_s": mixed["bulk"].tokens_per_s,
        "mixed_query_p50_ms": mixed["query"].quantile_ms(0.5),
        "mixed_query_p99_ms": mixed["query"].quantile_ms(0.99),
        "latency_by_load": curve,
    }


def llama_rate(path: Path, sample: Sample, seconds: float) -> float:
    """Tokens a second of llama.cpp on the same documents, in batches that it chooses itself."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    model = llama_cpp.Llama(
        str(path),
        embedding=True,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        n_threads=available_cores(),
        verbose=False,
    )

    def embed(texts: list[str]) -> object:
        return model.embed(texts, truncate=True)

    return _rival_rate(embed, sample, seconds)


def _rival_rate(embed: Callable[[list[str]], object], sample: Sample, seconds: float) -> float:
    """Tokens a second of a function that embeds texts."""
    started, done, n_sent = time.perf_counter(), 0, 0
    while (spent := time.perf_counter() - started) < seconds:
        start = n_sent * _TEXTS_OF_REQUEST % _TEXTS
        embed(sample.documents[start : start + _TEXTS_OF_REQUEST])
        done += sum(map(len, sample.document_ids[start : start + _TEXTS_OF_REQUEST]))
        n_sent += 1
    return done / spent


def table(facts: dict[str, Any], batch_ms: int) -> str:
    """The measurements as a table."""
    alone, service = facts["engine"], facts["server"]
    bulk, idle = service["bulk_tokens_per_s"], service["query_p50_ms"]
    rows = [
        ("engine alone, bulk", f"{alone['bulk_tokens_per_s']:.0f} tok/s", ""),
        (
            "server, bulk",
            f"{bulk:.0f} tok/s",
            f"{bulk / alone['bulk_tokens_per_s']:.2f} of the engine",
        ),
        ("engine alone, one query", f"{alone['query_p50_ms']:.1f} ms", ""),
        ("server, one query, p50", f"{idle:.1f} ms", f"+{idle - alone['query_p50_ms']:.1f} ms"),
        (
            "bulk beside queries",
            f"{service['mixed_bulk_tokens_per_s']:.0f} tok/s",
            f"{service['mixed_bulk_tokens_per_s'] / bulk:.2f} of bulk alone",
        ),
        (
            "queries beside bulk, p99",
            f"{service['mixed_query_p99_ms']:.0f} ms",
            f"1.5 batches + 2 idle p50 = {1.5 * batch_ms + 2 * idle:.0f} ms",
        ),
        ("ready after", f"{service['ready_s']:.1f} s", ""),
    ]
    rows += [
        (name, f"{rate:.0f} tok/s", f"engine alone: {alone['bulk_tokens_per_s'] / rate:.2f} x")
        for name, rate in facts["rivals"].items()
    ]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{a:<{width}}  {b:>12}  {c}" for a, b, c in rows)


def plot(facts: dict[str, Any], path: Path) -> None:
    """Plot the latency of queries over their rate."""
    import matplotlib.pyplot as plt

    plt.switch_backend("svg")
    curve = facts["server"]["latency_by_load"]
    figure, axes = cast("Any", plt).subplots(figsize=(6, 3.5))
    rates = [point["requests_per_s"] for point in curve]
    for name in ("p50_ms", "p99_ms"):
        axes.plot(rates, [point[name] for point in curve], marker="o", label=name[:3])
    axes.set(xlabel="queries a second", ylabel="latency, ms", title=facts["model"])
    axes.legend(loc="upper left")
    figure.tight_layout()
    figure.savefig(path)


def main(flags_given: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write a JSON file and a plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--output", type=Path, default=Path("bench/out"))
    parser.add_argument("--llama", type=Path, help="a GGUF of the same model")
    arguments = parser.parse_args(flags_given)
    settings = load_settings(None, model=arguments.model, precision=arguments.precision)
    make_ready(settings)
    (engine,) = load_engines(settings)
    sample = read_sample(engine)
    facts: dict[str, Any] = {
        "model": arguments.model,
        "precision": arguments.precision,
        "fingerprint": engine.fingerprint,
        "cores": available_cores(),
        "machine": platform.processor() or platform.machine(),
        "engine": engine_alone(engine, sample, arguments.seconds),
        "rivals": {},
    }
    flags = ("--model", arguments.model, "--precision", arguments.precision)
    environ = {"MATRYO_HOME": str(settings.home)}
    with Service(*flags, environ=environ) as service:
        facts["server"] = served(service, sample, arguments.seconds, (1, 2, 4, 8, 16))
    if arguments.llama:
        facts["rivals"]["llama.cpp"] = llama_rate(arguments.llama, sample, arguments.seconds)

    print(table(facts, settings.batch_ms))
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = f"{arguments.model}-{arguments.precision}"
    written = arguments.output / f"{name}.json"
    written.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    plot(facts, arguments.output / f"{name}.svg")
    print(f"written to {written}, and a plot beside it")


if __name__ == "__main__":
    main()
