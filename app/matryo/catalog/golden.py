"""Published values of a model's real weights: `golden.json` beside `model.toml`.

Four kinds of check: cosines of texts embedded with the model's prompts, vectors, pooled
token states before any layer norm, cut or L2, and token states. Each names its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matryo.core.errors import ManifestInvalid
from matryo.core.untrusted import read_bytes

GOLDEN_MAX_BYTES = 1 << 24
"""Most bytes of a `golden.json`; those that are shipped have up to some 100 kB."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CosineCheck(_Record):
    """Cosines between two lists of texts.

    Attributes:
        source: who published the values, and from what.
        rows: texts embedded as `row_type`.
        columns: texts embedded as `column_type`.
        expected: one list for each row, one value for each column.
        dimensions: output size; None for native.
        abs_tolerance: allowed difference of a cosine.
        rel_tolerance: allowed difference as a share of the expected cosine; the larger of
            the two holds.
    """

    kind: Literal["cosine"]
    source: str
    rows: tuple[str, ...]
    row_type: str
    columns: tuple[str, ...]
    column_type: str
    expected: tuple[tuple[float, ...], ...]
    dimensions: int | None = None
    abs_tolerance: Annotated[float, Field(ge=0)] = 0.0
    rel_tolerance: Annotated[float, Field(ge=0)] = 0.0


class PooledCheck(_Record):
    """Mean of one text's token states, without prefix, before any other output step.

    Attributes:
        source: who published the values, and from what.
        values: the first components, or all of them.
        min_cosine: least cosine between `values` and ours.
        max_abs: largest difference of a component; None where the source's own arithmetic
            differs (tanh-GELU, bf16).
    """

    kind: Literal["pooled"]
    source: str
    text: str
    values: tuple[float, ...]
    min_cosine: Annotated[float, Field(gt=0, le=1)]
    max_abs: Annotated[float, Field(gt=0)] | None = None


class VectorCheck(_Record):
    """The vector of one text without prefix, at native size.

    Attributes:
        source: who published the values, and from what.
        values: the first components, or all of them.
        max_abs: largest difference of a component.
    """

    kind: Literal["vector"]
    source: str
    text: str
    values: tuple[float, ...]
    max_abs: Annotated[float, Field(gt=0)]


class HiddenCheck(_Record):
    """Some hidden states of some tokens of one text without prefix.

    Attributes:
        source: who published the values, and from what.
        first_token: index of the token that the first row of `values` belongs to.
        first_column: index of the first component of each row.
        values: one list for each token.
        max_abs: largest difference of a component.
    """

    kind: Literal["hidden"]
    source: str
    text: str
    first_token: Annotated[int, Field(ge=0)]
    first_column: Annotated[int, Field(ge=0)]
    values: tuple[tuple[float, ...], ...]
    max_abs: Annotated[float, Field(gt=0)]


Check = CosineCheck | PooledCheck | VectorCheck | HiddenCheck


class Golden(_Record):
    """The content of a `golden.json`."""

    checks: tuple[Annotated[Check, Field(discriminator="kind")], ...]


def read_golden(folder: Path) -> Golden:
    """Read `folder/golden.json`; no checks if there is no such file.

    Raises:
        ManifestInvalid: the file cannot be read, or a key in it is missing or wrong.
    """
    path = folder / "golden.json"
    try:
        content = read_bytes(path, GOLDEN_MAX_BYTES)
    except FileNotFoundError:
        return Golden(checks=())
    except (OSError, ValueError) as exc:
        raise ManifestInvalid(f"{path}: cannot be read: {exc}") from exc
    try:
        return Golden.model_validate_json(content)
    except ValidationError as exc:
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"]))
        raise ManifestInvalid(f"{path}: key '{where}': {error['msg']}") from exc
