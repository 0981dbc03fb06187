"""From token ids to vectors, synchronously: what an engine is, tokenising, post-processing.

Plain code for worker threads; nothing here knows of asyncio or HTTP. `onnx` has the engine on
ONNX Runtime, the only one so far; `factory` chooses the engine of an artefact.
"""

from matryo.engine.cores import CoreUse, plan_cores
from matryo.engine.limits import EngineLimits
from matryo.engine.protocol import BatchResult, Engine
from matryo.engine.tokenizer import Encoded, TokenIds

__all__ = [
    "BatchResult",
    "CoreUse",
    "Encoded",
    "Engine",
    "EngineLimits",
    "TokenIds",
    "plan_cores",
]
