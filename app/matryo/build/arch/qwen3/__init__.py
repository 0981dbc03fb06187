"""`model_type = "qwen3"`: a decoder with causal attention, RMS norms and a gated MLP.

Norms come before each block, and one comes after the last. Queries and keys have a norm for each
head, before rotary positions. No layer has a bias.

Source: Yang et al. 2025, Qwen3 Technical Report, arXiv:2505.09388. The reference code is
`Qwen3Model` in transformers.
"""

from __future__ import annotations

from matryo.build.arch.qwen3.config import Config
from matryo.build.arch.qwen3.forward import forward
from matryo.build.arch.qwen3.graph import emit
from matryo.build.arch.qwen3.keys import (
    GGUF_ARCHITECTURES,
    GGUF_KEYS,
    HUB_FIXED,
    HUB_KEYS,
    from_gguf,
)
from matryo.build.arch.qwen3.names import bind

__all__ = [
    "GGUF_ARCHITECTURES",
    "GGUF_KEYS",
    "HUB_FIXED",
    "HUB_KEYS",
    "Config",
    "bind",
    "emit",
    "forward",
    "from_gguf",
]
