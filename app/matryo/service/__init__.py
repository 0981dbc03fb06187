"""What an embedding request is, without a transport: names, prefixes, tokens, limits, one call.

A door (HTTP, gRPC, a file, a Python caller) makes `Options` and `Texts`, calls `Service.embed`,
and writes the `Answer` or translates the error in its own words.
"""

from matryo.service.local import LocalService
from matryo.service.request import OPEN, Answer, Caller, EmbeddingType, Options, Texts
from matryo.service.service import Service, ServiceConfig

__all__ = [
    "OPEN",
    "Answer",
    "Caller",
    "EmbeddingType",
    "LocalService",
    "Options",
    "Service",
    "ServiceConfig",
    "Texts",
]
