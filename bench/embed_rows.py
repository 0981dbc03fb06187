"""Memory and speed of `matryo embed` on many short rows, beside the engine alone.

    .venv/bin/python -m bench.embed_rows --rows 1000000 --source parquet --target parquet

The benchmark makes a file of rows, embeds the file with the command in a process of its own, and
reads that process's memory every second. Before and after, it measures the engine alone on texts of
the same file. It prints the memory at each tenth of the rows, and both speeds in tokens a second;
their ratio is the figure, because both were measured in one run.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from bench.corpus import debian_pairs
from matryo.assembly.models import make_ready
from matryo.catalog.catalog import open_catalog
from matryo.commands.bench.engine import best_rate
from matryo.commands.sources.parquet import load_pyarrow
from matryo.core.cores import available_cores
from matryo.core.environment import load_settings
from matryo.engine import Engine, plan_cores
from matryo.engine.factory import load_engine
from matryo.store.artifact import find_artifact
from matryo.store.layout import open_store

_SAMPLE, _BATCH = 4000, 10_000


def short_texts(n_rows: int, share_of_copies: float) -> Iterator[str]:
    """Synopses of packages, each made another by a number, but for the copies."""
    synopses = [synopsis for synopsis, _ in debian_pairs(5000)]
    chance = random.Random(0)
    for row in range(n_rows):
        number = row % 1000 if chance.random() < share_of_copies else row
        yield f"{synopses[number % len(synopses)]} {number}"


def write_rows(path: Path, texts: Iterator[str]) -> None:
    """A file of rows with an id each, in the format of its name."""
    rows = ({"id": row, "text": text} for row, text in enumerate(texts))
    if path.suffix == ".parquet":
        pa = load_pyarrow()
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        with pa.parquet.ParquetWriter(path, schema) as writer:
            while batch := [row for row, _ in zip(rows, range(_BATCH), strict=False)]:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        return
    with path.open("wb") as file:
        for row in rows:
            is_line = path.suffix == ".txt"
            file.write(str(row["text"]).encode() + b"\n" if is_line else orjson.dumps(row) + b"\n")


def memory_mb(process: int) -> float:
    """Resident memory of a process, without pages of files that are mapped."""
    status = Path(f"/proc/{process}/status").read_text("utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


def rows_done(progress: Path) -> int:
    """Rows that the command has noted."""
    try:
        return int(orjson.loads(progress.read_bytes())["done"]["rows"])
    except (OSError, ValueError):
        return 0


def run_command(flags: Sequence[str], out: Path, n_rows: int) -> tuple[float, dict[int, float]]:
    """Seconds from the first row to the last, and the most memory within each tenth of the rows."""
    command = [sys.executable, "-m", "matryo", "embed", *flags, "--output", str(out)]
    progress = out.with_name(out.name + ".progress")
    peaks: dict[int, float] = {}
    first: float | None = None
    with subprocess.Popen(command, env=os.environ) as process:  # noqa: S603 - our own command
        while process.poll() is None:
            time.sleep(1)
            done = rows_done(progress)
            if not done:
                continue
            first = first or time.perf_counter() - 1
            tenth = 10 * done // n_rows
            try:
                peaks[tenth] = max(peaks.get(tenth, 0.0), memory_mb(process.pid))
            except OSError:
                break
    ended = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"matryo embed ended with status {process.returncode}")
    return ended - (first or ended), peaks


def open_engine(model: str) -> Engine:
    """The engine of a model that is built, on every core."""
    settings = load_settings(model=(model,))
    make_ready(settings)
    manifest = open_catalog(settings).manifest(model)
    artifact = find_artifact(open_store(settings), manifest, manifest.precision_for("fp32"))
    return load_engine(manifest, artifact, plan_cores(available_cores()))


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--source", choices=["txt", "jsonl", "parquet"], default="jsonl")
    parser.add_argument("--target", choices=["jsonl", "npy", "parquet"], default="npy")
    parser.add_argument("--copies", type=float, default=0.0, help="share of rows; adds --dedupe")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each look at the engine")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, f"rows.{given.source}"), Path(folder, f"v.{given.target}")
        write_rows(path, short_texts(given.rows, given.copies))
        engine = open_engine(given.model)
        sample = list(short_texts(min(_SAMPLE, given.rows), given.copies))
        tokens = [encoded.ids for encoded in engine.tokenize(sample)]
        before = best_rate(engine, tokens, given.seconds)
        flags = [given.model, str(path), *(["--dedupe"] if given.copies else [])]
        elapsed_s, peaks = run_command(flags, out, given.rows)
        after = best_rate(engine, tokens, given.seconds)
        engine.close()
    mean_tokens = sum(map(len, tokens)) / len(tokens)
    rate = given.rows * mean_tokens / elapsed_s
    best = (before + after) / 2
    way = f".{given.source} to .{given.target}"
    print(f"rows        {given.rows:,} of {mean_tokens:.1f} tokens, {way}")
    print(f"memory, MB  {', '.join(f'{10 * t} %: {mb:.0f}' for t, mb in sorted(peaks.items()))}")
    print(f"command     {rate:,.0f} tok/s, {given.rows / elapsed_s:,.0f} texts/s")
    print(f"engine      {best:,.0f} tok/s alone ({before:,.0f} before, {after:,.0f} after)")
    print(f"ratio       {rate / best:.3f}")


if __name__ == "__main__":
    main()
