"""Embed the column `text` of Parquet files with Daft.

    python embed_with_daft.py IN OUT

Daft starts a process for each instance of the class. Daft does not divide the cores among them:
`threads` does.
"""

import sys

import daft
from daft import DataType, Series

from matryo import Embedder

WORKERS = 2
# The catalogue knows the number of components; nothing is loaded here.
VECTOR = DataType.fixed_size_list(DataType.float32(), Embedder("all-minilm-l6-v2").dimensions)


@daft.cls(max_concurrency=WORKERS, use_process=True)
class Vectors(Embedder):
    """An `Embedder` with a method for columns of Daft."""

    @daft.method.batch(return_dtype=VECTOR, batch_size=1024)
    def of(self, texts: Series) -> object:
        """Fixed-size lists of Arrow, one for each text."""
        return self.embed_arrow(texts)

    @daft.method.batch(return_dtype=DataType.string(), batch_size=1024)
    def names(self, texts: Series) -> list[str]:
        """The fingerprint of the vectors, for each text."""
        return [self.fingerprint] * len(texts)


def main() -> None:
    """Read, embed and write."""
    source, target = sys.argv[1:]
    vectors = Vectors("all-minilm-l6-v2", precision="int8", threads=1)
    rows = daft.read_parquet(source)
    rows.with_columns(
        {"embedding": vectors.of(rows["text"]), "fingerprint": vectors.names(rows["text"])}
    ).write_parquet(target)


if __name__ == "__main__":
    main()
