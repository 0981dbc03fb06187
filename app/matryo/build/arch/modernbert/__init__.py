"""`model_type = "modernbert"`: a pre-norm encoder with local and global attention layers.

The first layer has no norm before its attention. Most layers attend to near tokens only, and each
kind of attention has a rotary base of its own. The MLP is gated.

Sources: Warner et al. 2024, Smarter, Better, Faster, Longer, arXiv:2412.13663, and
`ModernBertModel` in transformers.
"""

from __future__ import annotations

from matryo.build.arch.modernbert.config import Config
from matryo.build.arch.modernbert.forward import forward
from matryo.build.arch.modernbert.graph import emit
from matryo.build.arch.modernbert.keys import (
    GGUF_ARCHITECTURES,
    GGUF_KEYS,
    HUB_FIXED,
    HUB_KEYS,
    from_gguf,
)
from matryo.build.arch.modernbert.names import bind

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
