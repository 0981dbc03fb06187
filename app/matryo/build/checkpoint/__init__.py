"""Reading upstream weights: one module a format, tensor names as data."""

from matryo.build.checkpoint.base import BLOCK_SIZE, Blocks, Checkpoint, FloatArray
from matryo.build.checkpoint.names import Part, Spelling, Weights

__all__ = ["BLOCK_SIZE", "Blocks", "Checkpoint", "FloatArray", "Part", "Spelling", "Weights"]
