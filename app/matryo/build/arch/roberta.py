"""`model_type = "roberta"`: another name of `xlm_roberta`, whose graph is the same."""

from __future__ import annotations

from matryo.build.arch.xlm_roberta import (
    GGUF_ARCHITECTURES,
    GGUF_KEYS,
    HUB_FIXED,
    HUB_KEYS,
    Config,
    bind,
    emit,
    forward,
    from_gguf,
)

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
