"""From token ids to vectors, synchronously: what an engine is, tokenising, post-processing.

Plain code for worker threads; nothing here knows of asyncio or HTTP. `onnx` has the engine on
ONNX Runtime, the only one so far.
"""

from matryo.engine.protocol import BatchResult, Engine
from matryo.engine.tokenizer import Encoded, TokenIds

__all__ = ["BatchResult", "Encoded", "Engine", "TokenIds"]
