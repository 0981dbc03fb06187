"""`model_type = "nomic_bert"`: BERT with rotary positions, a gated MLP, or mixtures of experts.

Sources: Nussbaum et al. 2024, arXiv:2402.01613, and Nussbaum and Duderstadt 2025,
arXiv:2502.07972. The reference code is `modeling_hf_nomic_bert.py` in nomic-ai/nomic-bert-2048
and, without experts, `NomicBertModel` in transformers.
"""

from __future__ import annotations

from matryo.build.arch.nomic_bert.config import Config
from matryo.build.arch.nomic_bert.forward import forward
from matryo.build.arch.nomic_bert.graph import emit
from matryo.build.arch.nomic_bert.keys import (
    GGUF_ARCHITECTURES,
    GGUF_KEYS,
    HUB_FIXED,
    HUB_KEYS,
    from_gguf,
)
from matryo.build.arch.nomic_bert.names import bind

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
