"""Embed the column `text` of Parquet files with the processes of Python's own library.

    python embed_with_processes.py IN OUT

A file is a task. A file whose output exists is passed over, so that a second start goes on where
the first one ended.
"""

import multiprocessing
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from matryo import Embedder

WORKERS = 2


def embed_file(embedder: Embedder, target: Path, path: Path) -> None:
    """Embed one file, 1,024 rows at a time."""
    output = target / path.name
    if output.exists():
        return
    part = output.with_suffix(".part")
    batches = map(embedder, pq.ParquetFile(path).iter_batches(1024))
    pq.write_table(pa.Table.from_batches(batches), part)
    part.rename(output)  # a file has its final name only if the file is complete


def main() -> None:
    """Embed every file that has no output yet."""
    source, target = map(Path, sys.argv[1:])
    target.mkdir(exist_ok=True)
    # A pool sends the embedder with each task. A process loads the model once all the same.
    embedder = Embedder(
        "all-minilm-l6-v2", precision="int8", threads=1, fingerprint_column="fingerprint"
    )
    files = sorted(source.glob("*.parquet"))
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        for _ in pool.imap_unordered(partial(embed_file, embedder, target), files):
            pass


if __name__ == "__main__":
    main()
