"""The table of a static model, with a row for each token id, as a checkpoint of one tensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matryo.build.arch.model2vec.config import Config
from matryo.build.checkpoint import Blocks, Checkpoint, FloatArray, Weights
from matryo.core.errors import CheckpointMismatch

# model2vec's names. sentence-transformers' `StaticEmbedding` has one for the table alone.
_TABLE, _OTHER_TABLE = "embeddings", "embedding.weight"
_ROW_NUMBERS, _FACTORS = "mapping", "weights"


def bind(checkpoint: Checkpoint, config: Config) -> Weights:  # noqa: ARG001 - of every architecture
    """The tensors of `checkpoint`, under our names: a row for each token id.

    Raises:
        CheckpointMismatch: there is no table, a tensor would go unused, or the row numbers and
            the factors are not of this table.
    """
    name = _OTHER_TABLE if _OTHER_TABLE in checkpoint.names else _TABLE
    return Weights(_TokenTable(checkpoint, name), ({"word_embeddings": name},))


class _TokenTable:
    """A table with a row for each token id, multiplied by the token's factor.

    A file may have fewer rows than token ids. It then has a row number for each id, and mostly a
    factor for each id. The factors are the weights of the mean that pools the rows.

    Args:
        checkpoint: the file.
        name: name of the table in the file.

    Raises:
        CheckpointMismatch: the row numbers and the factors are not of this table.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self._row_numbers: NDArray[np.int64] | None = None
        self._factors: FloatArray | None = None
        self.names = checkpoint.names - {_ROW_NUMBERS, _FACTORS}
        if name not in checkpoint.names:
            return
        n_rows = (*checkpoint.shape(name), 1)[0]
        n_ids = n_rows
        if _ROW_NUMBERS in checkpoint.names:
            self._row_numbers = numbers = checkpoint.indices(_ROW_NUMBERS)
            n_ids = len(_vector(_ROW_NUMBERS, numbers))
            if n_ids and not 0 <= numbers.min() <= numbers.max() < n_rows:
                raise CheckpointMismatch(
                    f"tensor '{_ROW_NUMBERS}' has row numbers from {numbers.min()} to "
                    f"{numbers.max()}, but tensor '{name}' has {n_rows} rows"
                )
        if _FACTORS in checkpoint.names:
            self._factors = factors = checkpoint.read(_FACTORS)
            if len(_vector(_FACTORS, factors)) != n_ids:
                raise CheckpointMismatch(
                    f"tensor '{_FACTORS}' has {len(factors)} entries, but there are {n_ids} token "
                    "ids"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the table with a row for each token id."""
        shape = self._checkpoint.shape(name)
        if name != self._name or self._row_numbers is None:
            return shape
        return (len(self._row_numbers), *shape[1:])

    def read(self, name: str, rows: slice | None = None) -> FloatArray:
        """The rows of some token ids; float32 `(n, hidden_size)`."""
        rows = rows or slice(None)
        if self._row_numbers is None:
            table = self._checkpoint.read(name, rows)
        else:
            numbers = self._row_numbers[rows].tolist()
            table = np.empty((len(numbers), *self._checkpoint.shape(name)[1:]), np.float32)
            for row, number in enumerate(numbers):
                table[row] = self._checkpoint.read(name, slice(number, number + 1))[0]
        return table if self._factors is None else table * self._factors[rows, None]

    def indices(self, name: str) -> NDArray[np.int64]:
        """A whole tensor of integers; see `Checkpoint.indices`."""
        return self._checkpoint.indices(name)

    def blocks(self, name: str, rows: slice, bits: int) -> Blocks | None:  # noqa: ARG002
        """None: these files hold plain floats."""
        return None

    def close(self) -> None:
        """Give the mapping back."""
        self._checkpoint.close()


def _vector(name: str, array: NDArray[np.int64] | FloatArray) -> NDArray[np.int64] | FloatArray:
    """The array, which must have one axis.

    Raises:
        CheckpointMismatch: it has another number of axes.
    """
    if array.ndim != 1:
        raise CheckpointMismatch(
            f"tensor '{name}' has the shape {array.shape}, but must have one axis"
        )
    return array
