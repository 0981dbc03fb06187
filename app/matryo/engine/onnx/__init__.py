"""The engine on ONNX Runtime: sessions over one mapped copy of the weights."""

from matryo.engine.onnx.engine import OnnxEngine
from matryo.engine.onnx.sessions import SessionConfig

__all__ = ["OnnxEngine", "SessionConfig"]
