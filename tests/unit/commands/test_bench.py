"""`matryo bench`: measures a model on this machine, or a server that runs already."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner, Result

from matryo.cli import main
from matryo.commands.bench.clients import Client, Target, body, load
from matryo.commands.bench.machine import cpu_class, cpu_name
from matryo.commands.bench.report import Report, capacity, table
from matryo.commands.bench.sample import LENGTHS, make_sample
from matryo.core.errors import SettingsInvalid
from tests.contract.conftest import live_server
from tests.fakes import MINILM, FakeEngine
from tests.unit.commands.conftest import Command

SECONDS = "2"


def bench(command: Command, *flags: str, **env: str) -> Result:
    """Run `matryo bench` on the tiny model."""
    arguments = ["bench", command.model.id, "--seconds", SECONDS, *flags]
    return CliRunner().invoke(main, arguments, env=command.env | env)


def numbers(value: Any) -> list[float]:
    """Every number of a JSON value."""
    match value:
        case dict():
            return [
                found for one in cast("dict[str, Any]", value).values() for found in numbers(one)
            ]
        case list():
            return [found for one in cast("list[Any]", value) for found in numbers(one)]
        case bool() | str() | None:
            return []
        case _:
            return [float(value)]


def test_bench_measures_engine_and_server_of_this_machine(embed: Command) -> None:
    """The command serves the model with the operator's settings, whatever keys these ask for."""
    asked = {
        "MATRYO_API_KEYS": "sk-operator",
        "MATRYO_KEYS_FILE": "/no/such/keys.toml",
        "MATRYO_TLS_CERT_FILE": "/no/such/cert.pem",
        "MATRYO_TLS_KEY_FILE": "/no/such/key.pem",
        "MATRYO_METRICS_PORT": "1",
    }
    result = bench(embed, "--json", **asked)
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["model"] == embed.model.id
    assert report["fingerprint"] == embed.engine().fingerprint
    assert {one["tokens"] for one in report["engine"]["lengths"]} == {16}  # the limit is 120
    assert [one["share"] for one in report["server"]["load"]] == [0.3, 0.6, 0.9]
    assert all(one["failed"] == 0 for one in report["server"]["load"])
    found = [value for value in numbers(report) if value != 0]
    assert all(np.isfinite(found))
    assert report["server"]["peak_rss_mb"] >= report["server"]["rss_mb"] > 10
    text = table(cast("Report", report))
    assert f"{report['server']['query_p50_ms']:.1f} ms" in text
    assert text.endswith(capacity(cast("Report", report)))


def test_bench_measures_a_server_that_runs_already(
    embed: Command, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --url the server answers, with the key of OPENAI_API_KEY, and no engine is measured."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    with live_server(engine, api_keys="sk-right", aliases=embed.model.id) as live:
        result = bench(embed, "--url", f"{live.url}/v1", "--json")
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["engine"] is None
        assert report["server"]["queries_per_s"] > 0

        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        refused = bench(embed, "--url", f"{live.url}/v1")
    assert refused.exit_code == 1
    assert "401" in refused.stderr
    assert "Incorrect API key" in refused.stderr


def test_bench_measures_a_slow_server(embed: Command, engine: FakeEngine) -> None:
    """Bulk requests have fewer texts where 16 would not be answered in time."""
    engine.delay_s = 0.02
    with live_server(engine, aliases=embed.model.id) as live:
        result = bench(embed, "--url", f"{live.url}/v1", "--json")
    assert result.exit_code == 0, result.stderr
    server = json.loads(result.stdout)["server"]
    assert 1 <= server["bulk_texts"] < 16
    assert server["bulk_tokens_per_s"] > 0


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host/v1", "http://:80", "http://h:99999"])
def test_a_url_that_is_none_is_refused(embed: Command, url: str) -> None:
    """The error names the URL and shows a right one."""
    result = bench(embed, "--url", url)
    assert result.exit_code == 1
    assert url in result.stderr
    assert "http://host:8080/v1" in result.stderr


def test_a_server_that_is_not_there_is_an_error(embed: Command) -> None:
    """The error names the address and what the system said."""
    result = bench(embed, "--url", "http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert "127.0.0.1:9" in result.stderr
    assert "refused" in result.stderr.lower()


def test_the_sample_is_the_same_everywhere_and_fits_the_model() -> None:
    """Equal seeds give equal texts, within the limit, and ids of exactly the promised lengths."""
    engine = FakeEngine(MINILM)
    one, other = make_sample(engine), make_sample(FakeEngine(MINILM))
    assert one.documents == other.documents
    assert one.documents != make_sample(engine, seed=1).documents
    limit = engine.manifest.tokenizer.max_tokens
    assert max(map(len, one.document_ids)) <= limit
    assert len(set(map(len, one.document_ids))) > 50
    for n_tokens, texts in one.by_length.items():
        assert {len(ids) for ids in texts} == {n_tokens}
    assert set(one.by_length) == {n for n in LENGTHS if n <= limit}


class _Counts(http.server.BaseHTTPRequestHandler):
    """Counts requests."""

    protocol_version = "HTTP/1.1"
    n_seen = 0

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["content-length"]))
        type(self).n_seen += 1
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing."""


@contextmanager
def stand_in() -> Generator[int, None, None]:
    """A server that answers every POST; its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Counts)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_client_with_a_rate_sends_about_so_many_requests() -> None:
    """A paced client sends at its rate and no faster, however fast the answers are."""
    _Counts.n_seen = 0
    client = Client("query", (body("a"),), (1,), rate=50.0)
    with stand_in() as port:
        found = load(Target(port), [client], seconds=2.0, warm_up_s=0.0)["query"]
    # Poisson: 100 are expected, and these bounds are seven deviations wide.
    assert 30 <= _Counts.n_seen <= 170
    assert found.statuses == {200: len(found.latencies_s)}


def test_clients_without_a_server_say_so() -> None:
    """A client that cannot connect ends the measurement with an error."""
    with pytest.raises(SettingsInvalid, match="refused"):
        load(Target(9), [Client("query", (body("a"),), (1,))], seconds=0.1, warm_up_s=0.0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512bw avx512_vnni amx_int8", "AMX"),
        ("flags : fpu avx2 avx512bw avx512_vnni", "AVX-512 VNNI"),
        ("flags : fpu avx2", "AVX2"),
        ("Features : fp asimd asimddp", "NEON dot product"),
    ],
)
def test_the_class_of_a_cpu_is_its_fastest_instructions(
    tmp_path: Path, flags: str, expected: str
) -> None:
    """Flags of /proc/cpuinfo name the class; the first core counts."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nmodel name : A CPU\n{flags}\n\nprocessor : 1\nflags : x\n")
    assert cpu_class(cpuinfo) == expected
    assert cpu_name(cpuinfo) == "A CPU"
