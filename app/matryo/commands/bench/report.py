"""The figures of `matryo bench` as a table, and as a line of the capacity table."""

from __future__ import annotations

from typing import TypedDict


class Length(TypedDict):
    """The engine on texts of one length: tokens a second, and milliseconds of a lone text."""

    tokens: int
    tokens_per_s: float
    lone_ms: float


class Engine(TypedDict):
    """The engine alone; `tokens_per_s` is of documents of mixed lengths."""

    tokens_per_s: float
    query_ms: float
    lengths: list[Length]


class Load(TypedDict):
    """Queries at one rate; `share` is of the most that 16 connections reached."""

    share: float
    requests_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failed: int


class Server(TypedDict):
    """The server over HTTP. Memory and the time to be ready are unknown of another's server."""

    ready_s: float | None
    rss_mb: float | None
    peak_rss_mb: float | None
    bulk_texts: int
    bulk_tokens_per_s: float
    query_p50_ms: float
    queries_per_s: float
    load: list[Load]
    beside_bulk_p50_ms: float
    beside_bulk_p99_ms: float


class Report(TypedDict):
    """All that one run of `matryo bench` found; `engine` is None for another's server."""

    version: str
    model: str
    precision: str
    fingerprint: str
    cpu: str
    cpu_class: str
    cores: int
    seconds: float
    engine: Engine | None
    server: Server


def table(report: Report) -> str:
    """The report for a person."""
    lines = [
        f"{report['model']} {report['precision']}, matryo {report['version']}",
        f"{report['cores']} cores of {report['cpu']} ({report['cpu_class']})",
        "",
    ]
    rows: list[tuple[str, ...]] = []
    if engine := report["engine"]:
        rows = [("ENGINE ALONE", "TOK/S", "A CORE", "LONE TEXT")]
        rows += [
            (
                f"{one['tokens']} tokens a text",
                f"{one['tokens_per_s']:,.0f}",
                f"{one['tokens_per_s'] / report['cores']:,.0f}",
                f"{one['lone_ms']:.1f} ms",
            )
            for one in engine["lengths"]
        ]
        per_core = engine["tokens_per_s"] / report["cores"]
        mixed = f"{engine['tokens_per_s']:,.0f}", f"{per_core:,.0f}", ""
        rows.append(("documents of mixed lengths", *mixed))
        lines += [*_aligned(rows), ""]
    server = report["server"]
    share = engine and server["bulk_tokens_per_s"] / engine["tokens_per_s"]
    rows = [
        ("SERVER", "", ""),
        (
            f"bulk, 4 connections x {server['bulk_texts']} texts",
            f"{server['bulk_tokens_per_s']:,.0f} tok/s",
            f"{share:.2f} of the engine" if share else "",
        ),
        ("a lone query, p50", f"{server['query_p50_ms']:.1f} ms", ""),
        ("queries, 16 connections", f"{server['queries_per_s']:,.0f} a second", ""),
        (
            "a query beside bulk",
            f"{server['beside_bulk_p50_ms']:.0f} ms",
            f"p99 {server['beside_bulk_p99_ms']:.0f} ms",
        ),
    ]
    if server["rss_mb"] and server["peak_rss_mb"]:
        memory = f"{server['rss_mb']:.0f} MB", f"at most {server['peak_rss_mb']:.0f} MB"
        rows.append(("memory (RSS) at rest", *memory))
    if server["ready_s"]:
        rows.append(("ready after", f"{server['ready_s']:.1f} s", ""))
    lines += [*_aligned(rows), ""]
    rows = [("QUERIES AT A SHARE OF THE MOST", "A SECOND", "P50", "P90", "P99", "FAILED")]
    for load in server["load"]:
        times = (f"{load[name]:.1f} ms" for name in ("p50_ms", "p90_ms", "p99_ms"))
        rate = f"{load['requests_per_s']:,.0f}"
        rows.append((f"{load['share']:.0%}", rate, *times, str(load["failed"])))
    lines += [*_aligned(rows), "", "A line for the table of docs/capacity.md:", capacity(report)]
    return "\n".join(lines)


def capacity(report: Report) -> str:
    """The report as a line of docs/capacity.md."""
    server, engine = report["server"], report["engine"]
    best = engine["tokens_per_s"] if engine else server["bulk_tokens_per_s"]

    def memory(value: float | None) -> str:
        return f"{value:.0f}" if value else "-"

    middle = server["load"][len(server["load"]) // 2]
    cells = (
        report["model"],
        report["precision"] + (", native" if "+native" in report["fingerprint"] else ""),
        f"{report['cpu_class']}, {report['cores']} cores",
        f"{best / report['cores']:,.0f}",
        f"{server['query_p50_ms']:.1f}",
        f"{server['queries_per_s']:,.0f}",
        f"{middle['p99_ms']:.0f}",
        f"{memory(server['rss_mb'])} / {memory(server['peak_rss_mb'])}",
    )
    return f"| {' | '.join(cells)} |"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
