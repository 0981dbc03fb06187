"""Counts in a config, bounded: a graph with any of them can be built in bounded time and memory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1, le=1 << 22)]
"""A width, a number of tokens or a number of positions; the largest vocabulary here has 262,144."""

Blocks = Annotated[int, Field(ge=1, le=1 << 10)]
"""A number of layers or of experts: each adds nodes to the graph."""
