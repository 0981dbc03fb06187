"""A start of `matryo serve`: seconds until ready, what is imported, and memory at rest.

    .venv/bin/python -m bench.startup --model all-minilm-l6-v2 --runs 5
    .venv/bin/python -m bench.startup --against ../before/app

Starts servers in turn, and prints the least of all runs, because other work on the machine only
adds. Byte code is kept, as after an installation. The floor is a process that imports the same
libraries and loads the same tokenizer and graph. What a start takes beyond the floor is Matryo's
own. With `--against` the package of another folder starts in turn with this one. The first start of
each is not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matryo.assembly.models import core_use, make_ready
from matryo.catalog.catalog import open_catalog
from matryo.core.environment import load_settings
from matryo.engine.onnx.prepacked import find_prepacked
from matryo.store.artifact import find_artifact
from matryo.store.layout import open_store

_LIBRARIES = (
    "numpy, onnxruntime, tokenizers, pydantic, fastapi, prometheus_client, orjson, uvloop, "
    "httptools, click, dotenv"
)
_FLOOR = """
import sys, {libraries}
tokenizers.Tokenizer.from_file({tokenizer!r})
for threads in {threads}:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    onnxruntime.InferenceSession({graph!r}, options, providers=["CPUExecutionProvider"])
"""
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
_TICKS = os.sysconf("SC_CLK_TCK")
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Start:
    """What one start took.

    Attributes:
        ready_s: seconds from the start of the process to its ready line.
        cpu_s: seconds of all cores until then.
        rss_mb: resident memory then.
        pss_mb: the same, with pages that several processes share divided among them.
    """

    ready_s: float
    cpu_s: float
    rss_mb: float
    pss_mb: float


def start(command: Sequence[str], environ: Mapping[str, str]) -> tuple[Start, list[str]]:
    """Start a server, stop it once it is ready, and return what it took and wrote until then.

    Raises:
        SystemExit: the server ended before it was ready.
    """
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - our own command
        command,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environ},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines: list[str] = []
        for line in process.stderr or ():
            lines.append(line)
            if "ready: " in line:
                break
        else:
            raise SystemExit(f"{' '.join(command)} ended before it was ready: {''.join(lines)}")
        ready_s = time.perf_counter() - began
        folder = Path(f"/proc/{process.pid}")
        ticks = folder.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        memory = dict(
            line.split(":") for line in folder.joinpath("smaps_rollup").read_text().splitlines()[1:]
        )
        rss_mb, pss_mb = (int(memory[key].split()[0]) / 1000 for key in ("Rss", "Pss"))
        process.send_signal(signal.SIGTERM)
        process.communicate()
    return Start(ready_s, sum(map(int, ticks)) / _TICKS, rss_mb, pss_mb), lines


def best(starts: Sequence[Start]) -> Start:
    """The least of each figure."""
    return Start(
        min(one.ready_s for one in starts),
        min(one.cpu_s for one in starts),
        min(one.rss_mb for one in starts),
        min(one.pss_mb for one in starts),
    )


def imports(runs: Sequence[Sequence[str]]) -> dict[str, float]:
    """Milliseconds that each module's own code took, the least of several `-X importtime`."""
    found: dict[str, list[float]] = defaultdict(list)
    for lines in runs:
        for line in lines:
            if known := _IMPORT.match(line):
                found[known[2]].append(int(known[1]) / 1000)
    return {name: min(times) for name, times in found.items()}


def import_table(modules: Mapping[str, float]) -> str:
    """The packages and our modules that take longest to import, as Markdown."""
    packages: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for name, ms in modules.items():
        package = name.partition(".")[0]
        spent, count = packages[package]
        packages[package] = spent + ms, count + 1
    lines = ["| imported | modules | ms |", "|---|---|---|"]
    total = sum(modules.values())
    lines.append(f"| everything | {len(modules)} | {total:.0f} |")
    for name, (ms, count) in sorted(packages.items(), key=lambda item: -item[1][0])[:_SHOWN]:
        lines.append(f"| {name} | {count} | {ms:.1f} |")
    ours = {name: ms for name, ms in modules.items() if name.partition(".")[0] == "matryo"}
    for name, ms in sorted(ours.items(), key=lambda item: -item[1])[:_SHOWN]:
        lines.append(f"| {name} | | {ms:.1f} |")
    return "\n".join(lines)


def _floor_command(model: str, precision: str | None) -> list[str]:
    """A program that does what no server can leave out."""
    settings = make_ready(load_settings(None, model=(model,), precision=precision))
    manifest = open_catalog(settings).manifest(settings.model[0])
    artifact = find_artifact(
        open_store(settings), manifest, manifest.precision_for(settings.precision)
    )
    prepacked = find_prepacked(artifact)
    use = core_use(settings)
    threads = {use.threads, use.lone_threads} if prepacked else {use.lone_threads}
    graph = prepacked.graph if prepacked else artifact.graph
    program = _FLOOR.format(
        libraries=_LIBRARIES,
        tokenizer=str(artifact.tokenizer),
        graph=str(graph),
        threads=sorted(threads),
    )
    program += "print('ready: ', file=sys.stderr, flush=True)\nsys.stdin.read()"
    return [sys.executable, "-c", program]


def _row(name: str, one: Start, floor: Start) -> str:
    return (
        f"| {name} | {one.ready_s:.2f} | {one.ready_s - floor.ready_s:.2f} | {one.cpu_s:.2f} "
        f"| {one.rss_mb:.0f} | {one.pss_mb:.0f} |"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, help="a folder with another package `matryo`")
    arguments = parser.parse_args(given)
    flags = ["serve", "--model", arguments.model, "--port", "0"]
    if arguments.precision:
        flags += ["--precision", arguments.precision]
    packages = {"this": Path(__file__).resolve().parent.parent / "app"}
    if arguments.against:
        packages["other"] = arguments.against.resolve()
    floor = _floor_command(arguments.model, arguments.precision)
    starts: dict[str, list[Start]] = defaultdict(list)
    traces: list[list[str]] = []
    for run in range(arguments.runs + 1):
        starts["floor"].append(start(floor, {})[0])
        for name, folder in packages.items():
            environ = {"PYTHONPATH": str(folder), "MATRYO_LOG_LEVEL": "info"}
            seen, _ = start([sys.executable, "-m", "matryo", *flags], environ)
            if run:  # the first fills caches
                starts[name].append(seen)
        tracing = [sys.executable, "-X", "importtime", "-m", "matryo", *flags]
        traces.append(start(tracing, {"PYTHONPATH": str(packages["this"])})[1])
    least = {name: best(seen) for name, seen in starts.items()}
    print("| | ready, s | beyond the floor, s | all cores, s | RSS, MB | PSS, MB |")
    print("|---|---|---|---|---|---|")
    for name, one in least.items():
        print(_row(name, one, least["floor"]))
    print(f"\n{import_table(imports(traces))}")


if __name__ == "__main__":
    main()
