"""Engines: a loaded model that turns texts into token ids, and token ids into vectors.

The code is synchronous, for worker threads, and uses neither asyncio nor HTTP. `protocol` defines
what an engine is. `tokenizer` and `postprocess` are for engines of every kind. `onnx` is the only
engine so far, on ONNX Runtime. `factory` loads the engine of an artefact.
"""

from matryo.engine.cores import CoreUse, plan_cores
from matryo.engine.interrupt import Interrupt, Interrupted
from matryo.engine.limits import EngineLimits
from matryo.engine.protocol import BatchResult, Engine, EngineFacts, Tokens
from matryo.engine.tokenizer import Encoded, Side, Token, TokenIds, most_chars

__all__ = [
    "BatchResult",
    "CoreUse",
    "Encoded",
    "Engine",
    "EngineFacts",
    "EngineLimits",
    "Interrupt",
    "Interrupted",
    "Side",
    "Token",
    "TokenIds",
    "Tokens",
    "most_chars",
    "plan_cores",
]
