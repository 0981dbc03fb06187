"""Limits on what a checkpoint file may ask of a build, and on the memory of one step."""

from __future__ import annotations

GGUF_MAX_ENTRIES = 1 << 14
"""Most metadata keys, and most tensors, of a GGUF file: real files have about 40 and 250.

The library makes a Python object for each, so that a false count would cost memory."""

GGUF_MAX_STRINGS = 1 << 20
"""Most strings in one array of a GGUF file: the largest vocabulary here has 262,144."""

ONNX_MAX_BYTES = 2**31 - 1
"""Most bytes of an ONNX file, a limit of protobuf: larger models keep weights in other files."""

READ_ROWS = 8192
"""Rows of a word table that a build holds in memory at a time."""

MAX_PADDING_ROWS = 128
"""Most rows that a word table may have more in the config than in the checkpoint."""

INLINE_BYTES = 16 * 1024
"""Most bytes of a float tensor that is kept in the graph; larger ones go to the data file."""

MAX_SPARE_ROWS = 512
"""Most rows of a word table without a token of the tokenizer: real tables are padded by up to 300,
and a tokenizer of another model lacks thousands."""
