"""Random modules of a checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]


class Drawing:
    """Random modules, wide enough that a wrong name, layout or activation moves the output."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def table(self, *shape: int, std: float = 1.0) -> NDArray[np.float32]:
        """A tensor of normal numbers."""
        return self._rng.standard_normal(shape).astype(np.float32) * np.float32(std)

    def linear(self, name: str, out: int, into: int) -> Tensors:
        """A weight and a bias."""
        weight, bias = self.table(out, into, std=0.3), self.table(out, std=0.3)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def norm(self, name: str, width: int) -> Tensors:
        """The scale and the shift of a layer norm."""
        scale, shift = 1 + self.table(width, std=0.2), self.table(width, std=0.3)
        return {f"{name}.weight": scale, f"{name}.bias": shift}


def renamed(tensors: Tensors, words: dict[str, str]) -> Tensors:
    """The tensors under other names: each of `words` in a name is replaced, in order."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for old, other in words.items():
            new = new.replace(old, other)
        made[new] = tensor
    return made
