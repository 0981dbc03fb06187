"""Rows a second of Ray Data, and of two processes with a bare `Embedder`; memory of the weights.

    make .venv/.engines
    .venv/engines/bin/python -m bench.engines --rows 200000
    .venv/engines/bin/python -m bench.engines --rows 200000 --kill

Both read the same Parquet files and write Parquet, with two workers of one core each, in turn. Ray
has two nodes on this machine. Starting them is not measured; starting the workers, and loading the
model, is. Each worker of Ray waits for the other after its first batch. Rows are Debian's package
descriptions, each with a number of its own. Every output must have every row once.

The memory is that of Ray's two workers. *Mapped* are the pages of the store's files in the memory
of a worker. If two workers have one copy, the sum of their parts (PSS) is what one of them maps.
With `--kill` one worker is killed when it has embedded its first batch, and nothing is compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import ray_cluster
from bench.corpus import debian_pairs
from matryo import Embedder
from matryo.core.environment import load_settings
from tests.weights import Weights, mapped_weights

_FILES = 16
_BATCH_SIZE = 1024
_TEXTS = 20_000  # different descriptions; more rows repeat them
_MB = 1e6


def write_rows(folder: Path, rows: int, *, short: bool = False) -> None:
    """Write Parquet files with the columns `id` and `text`.

    Args:
        folder: to write to.
        rows: of all files.
        short: whether a text is a synopsis of a line, not a description.
    """
    pa, pq = _arrow()
    pairs = debian_pairs(min(rows, _TEXTS))
    folder.mkdir(parents=True)
    for number in range(_FILES):
        ids = range(number * rows // _FILES, (number + 1) * rows // _FILES)
        texts = [f"{pairs[i % len(pairs)][not short]} {i}" for i in ids]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{number:02}.parquet")


def bare(source: Path, target: Path, given: dict[str, Any], batch_size: int) -> float:
    """Embed a folder with two processes, half of the files each; returns the seconds it took."""
    target.mkdir()
    files = sorted(source.iterdir())
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_embed_files, args=(given, batch_size, files[part::2], target))
        for part in range(ray_cluster.WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a bare process has failed")
    return time.perf_counter() - began


def _embed_files(
    given: dict[str, Any], batch_size: int, files: Sequence[Path], target: Path
) -> None:
    pa, pq = _arrow()
    with Embedder(threads=1, **given) as embedder:
        for path in files:
            batches = pq.ParquetFile(path).iter_batches(batch_size)
            pq.write_table(pa.Table.from_batches(map(embedder, batches)), target / path.name)


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.engines")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="texts of a line")
    parser.add_argument("--kill", action="store_true", help="kill a worker of Ray")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="int8")
    options = parser.parse_args(arguments)
    given: dict[str, Any] = {
        "model": options.model,
        "precision": options.precision,
        "truncate": True,
    }
    with Embedder(**given) as embedder:  # builds what is missing, before anything is measured
        embedder.embed(["a"])
    home = load_settings(None).home
    batch_size = min(_BATCH_SIZE, options.rows // _FILES)
    n_workers = 0
    rates: dict[str, list[float]] = {"bare": [], "ray": []}
    memory: dict[int, Weights] = {}

    def look(workers: dict[int, str]) -> None:
        memory.update({pid: mapped_weights(pid, home) for pid in workers})
        if options.kill:
            os.kill(min(workers), signal.SIGKILL)

    with tempfile.TemporaryDirectory() as root, ray_cluster.two_nodes():
        folder = Path(root)
        write_rows(folder / "in", options.rows, short=options.short)
        for _ in range(options.rounds):
            if not options.kill:
                spent_s = bare(folder / "in", folder / "bare", given, batch_size)
                rates["bare"].append(options.rows / spent_s)
                _check(folder / "bare", options.rows)
            spent_s = ray_cluster.embed(
                folder / "in", folder / "ray", folder / "seen", given, batch_size, look
            )
            rates["ray"].append(options.rows / spent_s)
            _check(folder / "ray", options.rows)
            n_workers = len(ray_cluster.processes(folder / "seen"))
            for name in ("bare", "ray", "seen"):
                shutil.rmtree(folder / name, ignore_errors=True)
    print(json.dumps(_report(rates, memory) | {"processes": n_workers}, indent=1))
    return 0


def _check(folder: Path, rows: int) -> None:
    """Look whether a folder of Parquet has every row once.

    Raises:
        SystemExit: it has not.
    """
    _, pq = _arrow()
    ids = pq.read_table(folder, columns=["id"])["id"].to_pylist()
    if sorted(ids) != list(range(rows)):
        raise SystemExit(
            f"{folder} has {len(ids)} rows with {len(set(ids))} different ids, of {rows}"
        )


def _report(rates: dict[str, list[float]], memory: dict[int, Weights]) -> dict[str, Any]:
    ratios = [ray / alone for alone, ray in zip(rates["bare"], rates["ray"], strict=False)]
    workers = list(memory.values())[: ray_cluster.WORKERS]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "rows_per_s": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
        "ray_over_bare": round(statistics.median(ratios), 3) if ratios else None,
        "mapped_mb": [round(worker.resident / _MB, 1) for worker in workers],
        "mapped_pss_mb": [round(worker.own / _MB, 1) for worker in workers],
        "mapped_private_mb": [round(worker.private / _MB, 1) for worker in workers],
    }


def _arrow() -> tuple[Any, Any]:
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
