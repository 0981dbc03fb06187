"""The engine on ONNX Runtime."""

from matryo.engine.onnx.engine import OnnxEngine

__all__ = ["OnnxEngine"]
