"""Unit vectors in smaller numbers: int8, uint8, and signs packed into bytes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from matryo.core.errors import InvalidRequest
from matryo.engine.postprocess import FloatArray
from matryo.service.request import EmbeddingType

Matrix = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]

_BITS = 8
# A unit vector of D components has a root mean square of 1/√D. Six times that spans all
# components but rare outliers, which are clipped (docs/LOG.md has the measured loss).
_INT8_SPAN = 6.0


def check_embedding_type(
    embedding_type: EmbeddingType, dimensions: int, *, normalize: bool = True
) -> None:
    """Refuse signs that do not fill their bytes, and small numbers of vectors of any length.

    Raises:
        InvalidRequest: `binary` or `ubinary` with a size that eight does not divide; `int8` or
            `uint8`, whose scale is that of unit vectors, with `normalize` False.
    """
    if embedding_type in ("int8", "uint8") and not normalize:
        raise InvalidRequest(
            f"Invalid value for 'embedding_type': '{embedding_type}' has a scale for vectors of "
            "unit length, and 'normalize' is false. Ask for float, or leave 'normalize' out.",
            param="embedding_type",
            code="invalid_value",
        )
    if embedding_type in ("binary", "ubinary") and dimensions % _BITS:
        raise InvalidRequest(
            f"Invalid value for 'embedding_type': '{embedding_type}' packs eight dimensions into "
            f"a byte, and {dimensions} is not a multiple of 8. Ask for a multiple in 'dimensions'.",
            param="embedding_type",
            code="invalid_value",
        )


def quantize(vectors: FloatArray, embedding_type: EmbeddingType) -> Matrix:
    """Unit vectors in a smaller type.

    Args:
        vectors: `(n, D)` float32, rows of unit length.
        embedding_type: `int8`: components times `127·√D/6`, rounded and clipped, one scale
            for all vectors of a size, so that dot products compare as before; `uint8`: the
            same plus 128; `ubinary`: a bit for each sign, most significant first, eight to
            a byte; `binary`: the same minus 128 as int8, as Cohere and sentence-transformers
            have it.

    Returns:
        `(n, D)` float32, int8 or uint8, or `(n, D/8)` int8 or uint8.
    """
    if embedding_type == "float":
        return vectors
    if embedding_type in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)  # (n, D/8)
        return bits if embedding_type == "ubinary" else _shift_down(bits)
    scale = np.float32(127 * math.sqrt(vectors.shape[1]) / _INT8_SPAN)
    levels = np.clip(np.rint(vectors * scale), -127, 127).astype(np.int8)
    return levels if embedding_type == "int8" else _shift_up(levels)


def _shift_down(values: NDArray[np.uint8]) -> NDArray[np.int8]:
    return (values ^ np.uint8(128)).view(np.int8)


def _shift_up(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    return values.view(np.uint8) ^ np.uint8(128)
