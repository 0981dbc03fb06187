"""`matryo.Embedder`: the server's vectors in a Python program, without a server."""

from matryo.embedder.embedder import Embedder

__all__ = ["Embedder"]
