"""`model_type = "model2vec"`: a static table, which has a vector for each token id.

A text's vector is the mean of its tokens' rows. The mean is a step of the manifest's output.

Sources: model2vec, `StaticModel`; sentence-transformers, `StaticEmbedding`.
"""

from __future__ import annotations

from matryo.build.arch.model2vec.config import Config
from matryo.build.arch.model2vec.graph import emit, forward
from matryo.build.arch.model2vec.keys import (
    GGUF_ARCHITECTURES,
    GGUF_KEYS,
    HUB_FIXED,
    HUB_KEYS,
    HUB_SHAPES,
    from_gguf,
)
from matryo.build.arch.model2vec.table import bind

__all__ = [
    "GGUF_ARCHITECTURES",
    "GGUF_KEYS",
    "HUB_FIXED",
    "HUB_KEYS",
    "HUB_SHAPES",
    "Config",
    "bind",
    "emit",
    "forward",
    "from_gguf",
]
