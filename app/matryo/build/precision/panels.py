"""Arranges weights in the panels that the operators of matryo-native read.

A panel is 16 columns of a product, which are 16 rows of a weight. Within a panel, `depth`
neighbours along the input come together for each column, since one instruction multiplies and adds
that many.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint import FloatArray

Number = TypeVar("Number", np.float32, np.int8)

LANES = 16
GROUP = 192
"""Neighbours along the input that share a scale, for activations in 8 bits."""


def into_panels(weight: FloatArray) -> FloatArray:
    """The rows of a weight in groups of 16; `(panels, 16, ...)`. Rows of 0 complete the last."""
    missing = -len(weight) % LANES
    padded = np.pad(weight, ((0, missing), *(((0, 0),) * (weight.ndim - 1))))
    return padded.reshape(-1, LANES, *weight.shape[1:])


def pack(
    panels: NDArray[Number], depth: int, even: int = 1
) -> tuple[tuple[int, ...], Iterable[NDArray[Number]]]:
    """Shape and pieces, one for each panel, of packed weights; `(panels, steps, 16, depth)`.

    Args:
        panels: `(panels, 16, in)`, float32 or int8.
        depth: neighbours along the input that come together: 4 for activations in 8 bits, 2 for
            activations in 16 bits, 1 for float32.
        even: number that divides the number of steps. Zeros complete the last steps.
    """
    padded = np.pad(panels, ((0, 0), (0, 0), (0, -panels.shape[-1] % (depth * even))))
    steps = padded.reshape(len(panels), LANES, -1, depth).swapaxes(1, 2)
    return steps.shape, (np.ascontiguousarray(piece)[None] for piece in steps)
