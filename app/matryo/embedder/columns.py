"""Columns of texts in, columns of vectors out, in the types of whatever library has the batch.

None of these libraries is imported here before a batch of theirs arrives.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from matryo.core.errors import InvalidRequest, SetupError
from matryo.engine.postprocess import FloatArray

Nulls = Literal["refuse", "keep"]
"""What becomes of a text that is null: an error, or a vector that is null."""

_LISTERS = ("to_pylist", "tolist", "to_list")  # of Arrow and Daft, NumPy and pandas, Polars


@dataclass(frozen=True, slots=True)
class TextColumn:
    """The texts of a column.

    Attributes:
        strings: all texts that are not null, in order.
        rows: the row of each string.
        n_rows: rows of the column, nulls included.
        may_be_null: whether nulls are allowed; a column may still have none.
    """

    strings: Sequence[str]
    rows: Sequence[int]
    n_rows: int
    may_be_null: bool

    def spread(self, vectors: FloatArray) -> FloatArray:
        """`(n_rows, D)` of the vectors of `strings`: a row of NaN for each null."""
        if len(self.strings) == self.n_rows:
            return vectors
        spread = np.full((self.n_rows, vectors.shape[1]), np.nan, np.float32)
        spread[self.rows] = vectors
        return spread

    def to_arrow(self, vectors: FloatArray) -> Any:  # noqa: ANN401 - a library that may be absent
        """Arrow's lists of the vectors of `strings`, null for each null.

        Returns:
            A `pyarrow.FixedSizeListArray`; with `may_be_null`, a `pyarrow.ListArray`. Arrow cannot
            read fixed-size lists with nulls from Parquet, and a column has one type in all batches.
        """
        pa = _pyarrow()
        size = vectors.shape[1]
        flat = pa.array(vectors.reshape(-1))
        if not self.may_be_null:
            return pa.FixedSizeListArray.from_arrays(flat, size)
        has_text = np.zeros(self.n_rows, bool)
        has_text[self.rows] = True
        ends = size * np.cumsum(has_text, dtype=np.int32)
        offsets = np.concatenate([np.zeros(1, np.int32), ends])
        return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~has_text))


def read_texts(texts: Any, nulls: Nulls) -> TextColumn:  # noqa: ANN401 - of any library
    """The texts of a list, or of a column of NumPy, Arrow, pandas, Polars or Daft.

    Args:
        texts: strings; null is None, NaN or pandas' NA.
        nulls: whether a null is refused.

    Raises:
        InvalidRequest: `texts` is one string or no column, or one of its items is no string.
    """
    items = _items(texts)
    keep = nulls == "keep"
    if set(map(type, items)) <= {str}:
        return TextColumn(items, range(len(items)), len(items), keep)
    rows = [row for row, item in enumerate(items) if not (keep and _is_null(item))]
    for row in rows:
        if not isinstance(items[row], str):
            hint = ', or choose nulls="keep" for a null vector' if _is_null(items[row]) else ""
            raise InvalidRequest(
                f"texts[{row}] is {type(items[row]).__name__}; each text must be a string{hint}"
            )
    return TextColumn([items[row] for row in rows], rows, len(items), keep)


def _items(texts: Any) -> Sequence[Any]:  # noqa: ANN401 - of any library
    if _has_no_order(texts) or hasattr(texts, "columns"):
        raise InvalidRequest(
            f"texts is a {type(texts).__name__}; give a list of strings, or one column of strings"
        )
    listed: Any = next((getattr(texts, name)() for name in _LISTERS if hasattr(texts, name)), texts)
    # A bare string is a sequence of strings too: its letters would be embedded one by one.
    if isinstance(listed, str):
        raise InvalidRequest("texts is one string; give a list, such as [text]")
    return cast("Sequence[Any]", listed) if isinstance(listed, Sequence) else list(listed)


def _has_no_order(value: object) -> bool:
    """Whether a value is a container, but no sequence of texts."""
    return isinstance(value, (Mapping, AbstractSet, bytes))


def _is_null(item: object) -> bool:
    return (
        item is None
        or (isinstance(item, float) and math.isnan(item))
        or type(item).__name__ == "NAType"  # pandas.NA
    )


# --- batches of several columns


def is_batch(value: object) -> bool:
    """Whether a value has columns with names: a dict of arrays, or a table of Arrow or pandas."""
    return isinstance(value, Mapping) or _is_arrow(value) or _is_pandas(value)


def column_of(batch: Any, name: str) -> Any:  # noqa: ANN401 - of any library
    """The column of a batch with this name.

    Raises:
        InvalidRequest: the batch has no such column.
    """
    if name not in (names := _names(batch)):
        raise InvalidRequest(
            f"the batch has no column {name!r}, but {', '.join(map(repr, names)) or 'none'}. Name "
            "the column of texts with text_column."
        )
    return batch[name]


def with_columns(
    batch: Any,  # noqa: ANN401 - of any library
    texts: TextColumn,
    vectors: FloatArray,
    names: tuple[str, str | None],
    fingerprint: str,
) -> Any:  # noqa: ANN401 - the batch's own type
    """A batch with a column of vectors, and perhaps one that repeats their fingerprint.

    The new columns have the types of the batch: in a dict, arrays `(n, D)` of float32 and `(n,)`
    of strings; in a table of Arrow, lists (see `TextColumn.to_arrow`) and strings; in a data frame
    of pandas, the same types of Arrow.

    Args:
        batch: as for `is_batch`; the batch itself stays as it is.
        texts: of the batch.
        vectors: of the strings of `texts`.
        names: of the columns of vectors and of fingerprints; None for no fingerprints.
        fingerprint: of the vectors.

    Raises:
        InvalidRequest: the batch has a column of such a name.
    """
    for name in names:
        if name in _names(batch):
            raise InvalidRequest(
                f"the batch has a column {name!r} already. Choose another name with vector_column "
                "or fingerprint_column, or drop the column."
            )
    name, fingerprint_name = names
    repeated = [fingerprint] * texts.n_rows
    added: dict[str, Any]
    if isinstance(batch, Mapping):
        added = {name: texts.spread(vectors)}
        if fingerprint_name:
            added[fingerprint_name] = np.array(repeated, np.str_)
        return dict(cast("Mapping[str, Any]", batch)) | added
    pa = _pyarrow()
    added = {name: texts.to_arrow(vectors)}
    if fingerprint_name:
        added[fingerprint_name] = pa.array(repeated, pa.string())
    if _is_arrow(batch):
        for key, column in added.items():
            batch = batch.append_column(key, column)
        return batch
    wrap = sys.modules["pandas"].arrays.ArrowExtensionArray
    return batch.assign(**{key: wrap(column) for key, column in added.items()})


def _pyarrow() -> Any:  # noqa: ANN401 - an optional package
    try:
        return importlib.import_module("pyarrow")
    except ImportError as exc:
        raise SetupError(
            "columns of Arrow and pandas need pyarrow: pip install 'matryo[parquet]'"
        ) from exc


def _names(batch: Any) -> list[str]:  # noqa: ANN401 - of any library
    return list(batch.column_names if _is_arrow(batch) else batch.keys())


def _is_arrow(value: object) -> bool:
    pa = sys.modules.get("pyarrow")
    return pa is not None and isinstance(value, (pa.Table, pa.RecordBatch))


def _is_pandas(value: object) -> bool:
    pd = sys.modules.get("pandas")
    return pd is not None and isinstance(value, pd.DataFrame)
