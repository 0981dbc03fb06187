"""Embed the column `text` of Parquet files with Ray Data.

    python embed_with_ray.py IN OUT

Every worker loads the model once. All workers of a node share the weights in memory. Ray starts a
worker again that ended, and repeats the batches that the worker had not finished.
"""

import os
import sys

import ray

from matryo import Embedder

WORKERS = 2
CORES = 1  # of each worker; the model runs on as many threads
ROWS = 4096  # of a block: what a worker gets at a time, and embeds again if the worker dies


def main() -> None:
    """Read, embed and write, all at the same time."""
    source, target = sys.argv[1:]
    # Reading and writing need a CPU beside those of the workers.
    n_cpus = None if "RAY_ADDRESS" in os.environ else WORKERS * CORES + 1
    ray.init(num_cpus=n_cpus)
    rows = ray.data.read_parquet(source).repartition(target_num_rows_per_block=ROWS)
    rows.map_batches(
        Embedder,
        fn_constructor_kwargs={
            "model": "all-minilm-l6-v2",
            "precision": "int8",
            "fingerprint_column": "fingerprint",
        },
        batch_format="pyarrow",
        batch_size=1024,
        num_cpus=CORES,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
    ).write_parquet(target)


if __name__ == "__main__":
    main()
