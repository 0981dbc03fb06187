"""`matryo batch` and the Batch API against the engine alone, and queries beside a batch.

    python -m bench.batch --model all-minilm-l6-v2 --precision int8 --lines 20000 --rounds 3

Every round measures, on the same package descriptions: `matryo batch` from its first window to its
end; the Batch API from `batches.create` to its last answer; the engine alone, at the batch size
that was best before the first round, before and after each of the two; and the latencies of short
queries at `--rate` a second, without and with a batch beside them. A throughput is compared with
the mean of the engine's before and after. A ratio is the median over the rounds. The descriptions
are downloaded by `apt-get -o Acquire::Languages=en update`. `--base64` asks for base64 in place of
JSON numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

from bench.corpus import debian_pairs
from bench.service import Service
from matryo.assembly.models import ready_engines
from matryo.commands.bench.clients import Client, Target, body, load
from matryo.commands.bench.engine import best_way, engine_rate
from matryo.core.environment import load_settings

_ENDPOINT = "/v1/embeddings"
_POLL_S = 0.02  # of the command's progress
_API_POLL_S = 0.25  # of the API: frequent questions would take time from the batch


@dataclass(frozen=True, slots=True)
class Found:
    """One round.

    Attributes:
        engine: tokens a second, before the command, between the command and the API, and after.
        command, api: tokens a second.
        whole: of the command with its start.
        alone_ms, beside_ms: p50 and p99 of queries without and with a batch.
        beside_share: tokens a second of all runs while queries and a batch run, of the engine's.
    """

    engine: tuple[float, float, float]
    command: float
    whole: float
    api: float
    alone_ms: tuple[float, float]
    beside_ms: tuple[float, float]
    beside_share: float


def write_input(path: Path, texts: Sequence[str], model: str, *, base64: bool) -> None:
    """Write a file of one line for each text."""
    fields = {"model": model} | ({"encoding_format": "base64"} if base64 else {})
    with path.open("w", encoding="utf-8") as file:
        for index, text in enumerate(texts):
            line = {
                "custom_id": f"line-{index}",
                "method": "POST",
                "url": _ENDPOINT,
                "body": {"input": text, "truncate": True} | fields,
            }
            file.write(json.dumps(line) + "\n")


def run_command(folder: Path, flags: Sequence[str]) -> tuple[float, float]:
    """Seconds of `matryo batch`: from its first window on, and with its start."""
    output = folder / "out.jsonl"
    progress = folder / "out.jsonl.progress"
    command = [sys.executable, "-m", "matryo", "batch", str(folder / "in.jsonl"), str(output)]
    began = time.perf_counter()
    with subprocess.Popen([*command, *flags, "--restart"], stderr=subprocess.DEVNULL) as process:  # noqa: S603 - our own command
        first = None
        while process.poll() is None:
            if first is None and progress.exists():
                first = time.perf_counter()
            time.sleep(_POLL_S)
    ended = time.perf_counter()
    if process.returncode or first is None:
        raise SystemExit(f"matryo batch ended with status {process.returncode}")
    output.unlink()
    return ended - first, ended - began


class Api:
    """The Batch API of a server.

    Args:
        port: of the server.
        path: the input.
    """

    def __init__(self, port: int, path: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/v1"
        with path.open("rb") as file:
            answer = requests.post(
                f"{self._url}/files",
                data={"purpose": "batch"},
                files={"file": (path.name, file)},
                timeout=600,
            )
        answer.raise_for_status()
        self._file_id = answer.json()["id"]

    def create(self) -> str:
        """The id of a new batch of the input."""
        fields = {
            "input_file_id": self._file_id,
            "endpoint": _ENDPOINT,
            "completion_window": "24h",
        }
        answer = requests.post(f"{self._url}/batches", json=fields, timeout=60)
        answer.raise_for_status()
        return answer.json()["id"]

    def state(self, batch_id: str) -> dict[str, Any]:
        """The batch as it is now."""
        answer = requests.get(f"{self._url}/batches/{batch_id}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def wait(self, batch_id: str, *statuses: str) -> dict[str, Any]:
        """The batch, once it has one of these statuses."""
        while (state := self.state(batch_id))["status"] not in statuses:
            if state["status"] in {"failed", "expired"}:
                raise SystemExit(f"the batch ended: {state}")
            time.sleep(_API_POLL_S)
        return state

    def forget(self, batch: dict[str, Any]) -> None:
        """Delete the output of a batch."""
        if file_id := batch.get("output_file_id"):
            requests.delete(f"{self._url}/files/{file_id}", timeout=60).raise_for_status()


def query_ms(port: int, queries: Sequence[str], rate: float, seconds: float) -> tuple[float, float]:
    """The p50 and the p99 of short queries, in milliseconds."""
    bodies = tuple(body(query) for query in queries)
    client = Client("query", bodies, (1,) * len(bodies), rate=rate / 4)
    found = load(Target(port), [client] * 4, seconds=seconds)["query"]
    return found.quantile_ms(0.5), found.quantile_ms(0.99)


def run_round(
    given: argparse.Namespace,
    folder: Path,
    engine_alone: Callable[[], float],
    n_tokens: int,
    queries: Sequence[str],
) -> Found:
    """Measure everything once."""
    flags = ["--model", given.model, "--precision", given.precision]
    before = engine_alone()
    command_s, whole_s = run_command(folder, flags)
    between = engine_alone()
    environ = {
        "MATRYO_BATCH": "true",
        "MATRYO_BATCH_DIR": str(folder),
        "MATRYO_MAX_WAIT_S": "600",
    }
    with Service(*flags, environ=environ) as service:
        api = Api(service.port, folder / "in.jsonl")
        began = time.perf_counter()
        done = api.wait(api.create(), "completed")
        api_s = time.perf_counter() - began
        after = engine_alone()
        api.forget(done)
        alone = query_ms(service.port, queries, given.rate, given.seconds)
        batch_id = api.create()
        api.wait(batch_id, "in_progress")
        n_before, began = _tokens(service.port), time.perf_counter()
        beside = query_ms(service.port, queries, given.rate, given.seconds)
        share = (_tokens(service.port) - n_before) / (time.perf_counter() - began) / after
        if api.state(batch_id)["status"] == "completed":
            print("the batch ended before the queries did: give more --lines", file=sys.stderr)
        requests.post(f"http://127.0.0.1:{service.port}/v1/batches/{batch_id}/cancel", timeout=60)
        api.forget(api.wait(batch_id, "cancelled", "completed"))
    return Found(
        (before, between, after),
        n_tokens / command_s,
        n_tokens / whole_s,
        n_tokens / api_s,
        alone,
        beside,
        share,
    )


def _tokens(port: int) -> float:
    """Tokens of all runs of the server."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("matryo_batch_tokens_sum")]
    return sum(float(line.split()[-1]) for line in lines)


def table(found: Sequence[Found]) -> str:
    """The medians over the rounds."""

    def rate(name: str, values: Sequence[float], first: int) -> str:
        engine = [statistics.mean(one.engine[first : first + 2]) for one in found]
        ratios = [value / alone for value, alone in zip(values, engine, strict=True)]
        per_s, ratio = statistics.median(values), statistics.median(ratios)
        return f"{name:<36}{per_s:>10,.0f} tok/s   ratio {ratio:.3f}"

    def latency(name: str, values: Sequence[tuple[float, float]]) -> str:
        p50, p99 = (statistics.median(one[index] for one in values) for index in (0, 1))
        return f"{name:<36}p50 {p50:.1f} ms   p99 {p99:.1f} ms"

    p50, p99 = (
        statistics.median(one.beside_ms[index] / one.alone_ms[index] for one in found)
        for index in (0, 1)
    )
    share = statistics.median(one.beside_share for one in found)
    return "\n".join(
        (
            rate("engine alone, at its best", [one.engine[1] for one in found], 1),
            rate("matryo batch, from its first window", [one.command for one in found], 0),
            rate("matryo batch, with its start", [one.whole for one in found], 0),
            rate("Batch API, from create to the end", [one.api for one in found], 1),
            latency("queries alone", [one.alone_ms for one in found]),
            latency("queries beside a batch", [one.beside_ms for one in found]),
            f"{'ratios':<36}p50 {p50:.2f}   p99 {p99:.2f}",
            f"{'batch and queries together':<36}{share:.2f} of the engine's tok/s",
        )
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="of the engine, and of queries")
    parser.add_argument("--rate", type=float, default=20, help="queries a second")
    parser.add_argument("--base64", action="store_true")
    given = parser.parse_args()
    pairs = debian_pairs(given.lines)
    texts = [description for _, description in pairs]
    queries = [synopsis for synopsis, _ in pairs[:500]]
    settings = load_settings(model=(given.model,), precision=given.precision)
    (engine,) = ready_engines(settings)
    prefix = engine.manifest.prefix(settings.default_input_type)
    ids = [engine.cut(one.ids) for one in engine.tokenize(texts, prefix)]
    way = best_way(engine, ids[:4096], given.seconds)
    alone = partial(engine_rate, engine, ids, given.seconds, runs=way.runs, size=way.size)
    found: list[Found] = []
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_input(folder / "in.jsonl", texts, given.model, base64=given.base64)
            found.append(run_round(given, folder, alone, sum(map(len, ids)), queries))
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    engine.close()
    print(table(found))


if __name__ == "__main__":
    main()
