"""From texts to vectors, synchronously: tokenise, pad, run, post-process.

Plain code for worker threads; nothing here knows of asyncio or HTTP.
"""

from app.engine.engine import (
    BatchResult,
    Encoded,
    Engine,
    OnnxEngine,
    TokenIds,
)
from app.engine.sessions import SessionConfig
from app.graph.interface import SOLO_TOKENS

__all__ = [
    "SOLO_TOKENS",
    "BatchResult",
    "Encoded",
    "Engine",
    "OnnxEngine",
    "SessionConfig",
    "TokenIds",
]
