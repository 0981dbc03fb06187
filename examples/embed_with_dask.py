"""Embed the column `text` of Parquet files with Dask.

    python embed_with_dask.py IN OUT

Every worker process loads the model once, whatever its number of tasks. The model takes as many
threads as the worker has.
"""

import sys

import dask.dataframe as dd
from dask.distributed import Client, LocalCluster

from matryo import Embedder


def main() -> None:
    """Read, embed and write."""
    source, target = sys.argv[1:]
    embedder = Embedder("all-minilm-l6-v2", precision="int8", fingerprint_column="fingerprint")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        rows = dd.read_parquet(source)
        # An empty batch needs no model: Dask learns the types of the new columns from it.
        rows.map_partitions(embedder, meta=embedder(rows.head(0))).to_parquet(target)


if __name__ == "__main__":
    main()
