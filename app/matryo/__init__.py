"""Matryo: OpenAI's embeddings endpoint over Matryoshka text models on ONNX Runtime.

`matryo.Embedder` gives the same vectors in a Python program; the command `matryo` serves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matryo.embedder import Embedder

__all__ = ["Embedder", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Loaded when asked for: commands such as `matryo --help` need none of an embedder's imports.
    if name == "Embedder":
        from matryo.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'matryo' has no attribute '{name}'")
