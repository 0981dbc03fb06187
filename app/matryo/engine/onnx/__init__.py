"""The engine on ONNX Runtime: sessions over one mapped copy of the weights."""

from matryo.engine.onnx.engine import OnnxEngine

__all__ = ["OnnxEngine"]
