"""The benchmark runs on a tiny model and made-up text; no time is asserted."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import abuse, cores, doors, fair, fair_served, profile, requests, serving, startup
from bench.door_clients import BASE64, WAYS
from bench.fair_load import Load, Seen
from bench.fair_virtual import simulate
from bench.peers import __main__ as peers
from bench.peers.child import Child
from bench.peers.plot import plot
from bench.peers.rounds import Measured, choose, race
from bench.peers.table import INT8, table
from bench.service import Service
from bench.shapes import SHAPES
from matryo.engine import plan_cores
from tests.checkpoints import make_model
from tests.conftest import build_tiny


def pairs(n: int) -> list[tuple[str, str]]:
    """Made-up texts instead of Debian's."""
    return [
        (f"sky {i}", f"the sky is blue and grass is green {i} " * (1 + i % 3)) for i in range(n)
    ]


def test_smoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark measures engine, server and load, prints a table, and writes JSON and a plot."""
    model = make_model(tmp_path, "bert", max_tokens=200)
    build_tiny(tmp_path, model)
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    monkeypatch.setattr(serving, "debian_pairs", pairs)
    serving.main(["--model", model.id, "--seconds", "0.2", "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "server, bulk" in shown
    facts = json.loads((tmp_path / "out/tiny-fp32.json").read_text())
    assert facts["server"]["bulk_tokens_per_s"] > 0
    assert len(facts["server"]["latency_by_load"]) == 5
    assert (tmp_path / "out/tiny-fp32.svg").stat().st_size > 1000


def test_fair_in_virtual_time() -> None:
    """Greedy tenants have their weights, and polite ones do not wait as long as without the rules."""
    load = Load(6.0, rate=19.0, bulk_part=0.1)
    alone = simulate(load, "none", cores=2)
    beside = simulate(load, "bulk", cores=2, weights=(2.0, 1.0))
    tokens = beside.greedy_tokens
    assert 1.3 < tokens["greedy-0"] / tokens["greedy-1"] < 2.7  # of a few seconds
    assert len(beside.queries_s) == len(alone.queries_s) > 30
    assert beside.refused == 0
    assert max(beside.queries_s) < 0.4  # a batch of bulk takes 0.2 s, and one may be under way
    shown = fair.row("both", alone, beside, sum(tokens.values()))
    assert shown.split()[-2:] == ["1.00", "0"]


def test_fair_served(tmp_path: Path) -> None:
    """The clients of both kinds get their answers from a server with keys."""
    model = make_model(tmp_path, "bert", max_tokens=200)
    build_tiny(tmp_path, model)
    environ = {
        "MATRYO_HOME": str(tmp_path / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_API_KEYS": ",".join(fair_served.KEYS),
    }
    load = Load(1.2, rate=60.0, bulk_part=0.3, bulk_texts=2, connections=2, greedy_texts=2)
    with Service("--model", model.id, environ=environ) as service:
        seen: Seen = fair_served.measure(service.port, load, "bulk")
    assert seen.queries_s
    assert seen.bulk_s
    assert seen.greedy_tokens["greedy"] > 0


def test_abuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scenario runs against a new server, and gives a row of what its callers and others saw."""
    model = make_model(tmp_path, "bert", max_tokens=200)
    build_tiny(tmp_path, model)
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    monkeypatch.setattr(abuse, "_STREAM_BYTES", 1 << 20)
    output = tmp_path / "table.md"
    flags = ["--model", model.id, "--seconds", "0.5", "--settle", "0", "--output", str(output)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        abuse.main([*flags, "--only", "45 MB of headers"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    heads, _, row = output.read_text().splitlines()
    cells = dict(zip(heads.split(" | "), row.split(" | "), strict=True))
    assert cells["| scenario"] == "| 45 MB of headers"
    assert cells["statuses"].startswith("1 x ")  # 431, or closed before that could be read
    assert cells["query p99 / alone, ms"] != "0 / 0"
    assert row in capsys.readouterr().out


def test_doors(capsys: pytest.CaptureFixture[str]) -> None:
    """Every way through every door is answered, and has a row of each table that it is in."""
    pytest.importorskip("grpc")
    doors.main(["--smoke"])
    shown = capsys.readouterr().out
    assert shown.count(BASE64) == 3
    for way in WAYS:
        rows = [line.split() for line in shown.splitlines() if line.startswith(f"{way} ")]
        assert rows
        assert all(float(row[-4]) > 0 for row in rows)


def test_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """Echo, server and two processes are measured at each number of connections, and have ratios."""
    requests.main(
        ["--seconds", "0.2", "--rounds", "1", "--connections", "1", "4", "--processes", "2"]
    )
    shown = capsys.readouterr().out
    for connections in (1, 4):
        assert f"{connections} connections" in shown
    rows = [line.rsplit(maxsplit=6) for line in shown.splitlines() if line.startswith("matryo")]
    assert [row[0] for row in rows] == ["matryo", "matryo x 2"] * 2
    assert all(float(cell) > 0 for row in rows for cell in (*row[1:3], *row[5:]))


def test_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without another Python, ours run alone, and the output says why each other is left out."""
    model = make_model(tmp_path, "bert", max_tokens=200)
    for native in (False, True):
        build_tiny(tmp_path, model, native=native)
        build_tiny(tmp_path, model, "int8", native=native)
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    monkeypatch.setattr(peers, "debian_pairs", pairs)
    flags = ["--model", model.id, "--checkpoint", str(model.checkpoint), "--accuracy", "20"]
    flags += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    flags += ["--seconds", "0.01", "--rounds", "2", "--shape", "1x8", "--shape", "2x16"]
    peers.main(flags)
    shown = capsys.readouterr().out
    assert shown.count("is left out: no --peer-python is given") == 6
    facts = json.loads((tmp_path / "out/peers-tiny.json").read_text())["engines"]
    for engine in ("ours fp32", "ours int8", "native fp32", "native int8"):
        assert facts[engine]["accuracy"]["company"] == 0
        for shape in ("1x8", "2x16"):
            assert min(facts[engine]["shapes"][shape]["rates"]) > 0
    assert 0.9 < facts["ours int8"]["accuracy"]["mean"] < 1


def test_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The costs of a model are measured, and its scheduler simulated on four cores."""
    model = make_model(tmp_path, "bert", max_tokens=200)
    build_tiny(tmp_path, model)
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    measure = cores.measure
    monkeypatch.setattr(
        cores, "measure", lambda *given: replace(measure(*given), token_s=1e-3, score_s=0.0)
    )
    flags = ["--model", model.id, "--precision", "fp32", "--cores", "4"]
    cores.main([*flags, "--seconds", "0.5", "--measure", "0.01"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| 4 |" in line]
    assert [row[1:3] for row in rows] == [["1", "4 x 1"], ["2", "2 x 1"]]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)


def test_simulated_interpreter() -> None:
    """Four workers compute nearly four times as much as one, unless Python takes as long as a run."""
    shares: list[float] = []
    for interpreter_s in (0.0, 0.2):
        machine = cores.Machine(0.0, 1e-3, 0.0, 1.0, interpreter_s, request_s=0.0)
        found = cores.simulate(machine, plan_cores(4), 10.0)
        shares.append(found.bulk_tokens_per_s * machine.token_s / 4)
        assert found.query_s
    assert 0.9 < shares[0] <= 1
    assert shares[1] < 0.3


PEER = """
import numpy as np
from bench.peers.protocol import serve


class Peer:
    about, settings = "a stand-in", ("slow", "fast")

    def runner(self, setting):
        print("what a library prints is no answer")
        return (lambda ids: sum(range(3_000_000 if setting == "slow" else 3))), 2

    def vectors(self, texts, setting):
        return np.array([[sum(text), len(texts)] for text in texts], np.float32)


serve(Peer)
"""


def test_peer(tmp_path: Path) -> None:
    """Another engine has its fastest setting, its vectors come in order, and its rates in a row."""
    texts, output = tmp_path / "texts.json", tmp_path / "vectors.npy"
    texts.write_text("[[1], [2, 2], [3]]")
    shapes = [(1, 8), (2, 4)]
    command = [sys.executable, "-c", PEER]
    with Child(INT8, command, 100, tmp_path / "log") as child:
        child.embed("slow", texts, [[2], [0, 1]], output)
        one = Measured(child.about, choose(child, shapes, 0.01, tmp_path / "settings.json"))
        for number in range(3):
            race([child], {INT8: one}, shapes, number, 0.01)
    assert np.load(output).tolist() == [[3, 1], [1, 2], [4, 2]]
    assert set(one.chosen.values()) == {"fast"}
    assert [len(one.rates[shape]) for shape in shapes] == [3, 3]
    assert "  - 1 x 8, 2 x 4: fast" in table({INT8: one}, shapes)
    both = {INT8: one, "llama.cpp Q8_0": replace(one, rates={shape: [1.0] * 3 for shape in shapes})}
    plot("beside", both, shapes, tmp_path / "plot.svg")
    assert "ours int8 / llama.cpp Q8_0" in (tmp_path / "plot.svg").read_text()


def test_peer_fails(tmp_path: Path) -> None:
    """A process that ends instead of answering is reported with its log."""
    log = tmp_path / "log"
    with pytest.raises(SystemExit, match=f"ended with code 3. Its log is {log}"):
        Child("broken", [sys.executable, "-c", "raise SystemExit(3)"], 100, log)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    """Each shape is about as large as it was asked for, and JSON with an input but for the nested."""
    body = SHAPES[name](1 << 20)
    assert 0.9 < len(body) / (1 << 20) < 1.1
    assert body.startswith(b'{"input": ')
    if name != "nested":
        assert json.loads(body)["input"]


def test_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark of a start prints both packages, the floor, and what was imported."""
    model = make_model(tmp_path, "bert", max_tokens=200)
    build_tiny(tmp_path, model)
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    package = Path(startup.__file__).parent.parent / "app"
    startup.main(["--model", model.id, "--runs", "1", "--against", str(package)])
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.split("|")) > 2
    }
    assert all(float(cell) > 0 for cell in rows["this"] if cell != rows["this"][1])
    assert float(rows["floor"][1]) == 0
    assert rows.keys() >= {"other", "everything", "matryo", "numpy", "matryo.core.settings"}


@pytest.mark.parametrize("kernels", ["onnxruntime", "native"])
def test_profile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kernels: str,
) -> None:
    """Every kind of operation has a share of a run's time, and products and attention a rate."""
    model = make_model(tmp_path, "bert", num_attention_heads=1)
    build_tiny(tmp_path, model, "int8", native=kernels == "native")
    monkeypatch.setenv("MATRYO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MATRYO_MODELS", str(model.models))
    monkeypatch.setattr(profile, "ceilings", lambda *_: {"int8 products": 1.0, "passes": 1.0})
    flags = ["--model", model.id, "--kernels", kernels, "--shape", "2x8", "--runs", "2"]
    profile.main(flags)
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "%" in line]
    kinds = {row[0].strip("| *"): row for row in table if "**" in row[0]}
    assert {"products", "attention", "norms", "passes"} <= kinds.keys()
    assert all(kinds[kind][-1].endswith("GFLOP/s |") for kind in ("products", "attention"))
    # Of two layers: q, k and v are one native product, and else three, of which v has a second.
    assert float(kinds["products"][3]) == (8 if kernels == "native" else 14)
