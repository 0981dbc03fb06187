"""Where the files of a static table have the values of its config.

No file of a `StaticEmbedding` has them, and the `hidden_dim` of a config.json is not kept up to
date when model2vec cuts a table. The shapes of the tensors are the only true source.
"""

from __future__ import annotations

from collections.abc import Mapping

from matryo.build.arch._keys import Key
from matryo.build.checkpoint import Checkpoint

HUB_KEYS: Mapping[str, Key] = {}

HUB_SHAPES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "hidden_size": (("embeddings", 1), ("embedding.weight", 1)),
    "vocab_size": (("mapping", 0), ("embeddings", 0), ("embedding.weight", 0)),
}
"""The tensors, and the axis of each, that have each value as their length; the first tensor that is
there counts."""

HUB_FIXED: Mapping[str, tuple[object, ...]] = {}

GGUF_ARCHITECTURES: tuple[str, ...] = ()

GGUF_KEYS: Mapping[str, Key] = {}


def from_gguf(checkpoint: Checkpoint) -> dict[str, object]:  # noqa: ARG001 - the protocol's
    """Nothing: there is no such file."""
    return {}
