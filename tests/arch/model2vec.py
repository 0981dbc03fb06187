"""A tiny `model2vec`: a table of vectors, with or without row numbers and factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference import Array

CONFIG: Mapping[str, Any] = {"hidden_size": 32, "vocab_size": 68}
VARIANTS: Mapping[str, Mapping[str, Any]] = {"model2vec": {}}
DIGEST = "f7d41289fe4f"


def tensors(config: Mapping[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights under model2vec's name."""
    shape = config["vocab_size"], config["hidden_size"]
    return {"embeddings": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def hidden_states(
    config: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float64]],
    ids: list[int],
) -> Array:
    """The rows of one text's tokens, `(T, H)`."""
    rows = [weights["embeddings"][token] for token in ids]
    return np.stack(rows)
