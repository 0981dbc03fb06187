"""`model_type = "new"`: BERT with rotary positions and a gated MLP, as Alibaba's GTE models have it.

The encoder has layer norms after each block, q, k and v with biases, and a gated MLP whose `down`
alone has a bias. A factor of NTK scaling changes the rotary frequencies of every text alike.

Sources: Zhang et al. 2024, mGTE, arXiv:2407.19669; `modeling.py` in Alibaba-NLP/new-impl
(`NewModel`, `NewGatedMLP`, `NTKScalingRotaryEmbedding`); `gte.rs` and `rotary.rs` in
huggingface/text-embeddings-inference; `GteModel` in transformers 5.
"""

from __future__ import annotations

from matryo.build.arch.new.config import Config
from matryo.build.arch.new.forward import forward
from matryo.build.arch.new.graph import emit
from matryo.build.arch.new.keys import GGUF_ARCHITECTURES, GGUF_KEYS, HUB_FIXED, HUB_KEYS
from matryo.build.arch.new.names import bind

__all__ = [
    "GGUF_ARCHITECTURES",
    "GGUF_KEYS",
    "HUB_FIXED",
    "HUB_KEYS",
    "Config",
    "bind",
    "emit",
    "forward",
]
