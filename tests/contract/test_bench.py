"""The benchmark runs on a tiny model and made-up text; no time is asserted."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from bench import abuse, doors, requests, serving, startup
from bench.door_clients import BASE64, WAYS
from bench.shapes import SHAPES
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
