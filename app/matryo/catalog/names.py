"""Spellings of a model's name: what other servers call the models that are served here.

Ollama writes `nomic-embed-text:v1.5` and `nomic-embed-text:latest`, LM Studio
`text-embedding-nomic-embed-text-v1.5`, hubs `nomic-ai/nomic-embed-text-v1.5`; case varies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")

_LM_STUDIO = "text-embedding-"
_LATEST = ":latest"


def look_up(name: str, known: Mapping[str, T]) -> T | None:
    """What `known` holds for a name, or for a name that means the same; None if nothing.

    Args:
        name: as a caller or an operator wrote the name.
        known: by names in lower case.
    """
    for spelling in _spellings(name.lower()):
        if spelling in known:
            return known[spelling]
    return None


def _spellings(name: str) -> Iterator[str]:
    """The name itself, then what is left when another server's way to write names is undone."""
    yield name
    plain = name.removesuffix(_LATEST).removeprefix(_LM_STUDIO)
    yield plain
    yield plain.replace(":", "-")
