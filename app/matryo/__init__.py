"""Matryo: OpenAI's embeddings endpoint over Matryoshka text models on ONNX Runtime.

`matryo.Embedder` gives the same vectors in a Python program; the command `matryo` serves them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matryo.embedder import Embedder

__all__ = ["Embedder", "__version__"]
__version__ = "0.1.0"

# Nothing leaves this machine unless a command fetches a file. The libraries below report their
# use to others by default, and read these variables when they are first imported. What the
# variables held before does not count: a server that must send nothing has no exceptions.
os.environ |= {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: a device id in ~/.cache/Microsoft, and uploads
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub and transformers
    "DO_NOT_TRACK": "1",  # whoever follows https://donottrack.sh
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


def __getattr__(name: str) -> object:
    # Loaded when asked for: commands such as `matryo --help` need none of an embedder's imports.
    if name == "Embedder":
        from matryo.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'matryo' has no attribute '{name}'")
