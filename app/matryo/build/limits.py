"""Limits on what a checkpoint file may ask of a build, and on the memory of one step."""

from __future__ import annotations

GGUF_MAX_ENTRIES = 1 << 14
"""Most metadata keys, and most tensors, of a GGUF file: real files have about 40 and 250.

The library makes a Python object for each, so that a false count would cost memory."""

GGUF_MAX_ITEMS = 1 << 20
"""Most items of an array of a GGUF file, and most strings of all arrays together: the largest
vocabulary here has 262,144 tokens."""

GGUF_MAX_NAME_BYTES = (1 << 16) - 1
"""Most bytes of a key or a tensor's name in a GGUF file, as its specification says."""

GGUF_MAX_TEXT_BYTES = 1 << 20
"""Most bytes of a string that a build reads from the metadata of a GGUF file."""

GGUF_MAX_CHARSMAP_BYTES = 1 << 22
"""Most bytes of the table of characters in a GGUF file: XLM-R's has 316,720."""

GGUF_MAX_AXES = 4
"""Most axes of a tensor in a GGUF file: GGML_MAX_DIMS."""

SAFETENSORS_MAX_HEADER = 1 << 24
"""Most bytes of the header of a safetensors file: a real one has about 100 bytes a tensor."""

FACTS_MAX_BYTES = 1 << 24
"""Most bytes of a JSON file beside the weights, such as `config.json`. Parsed, it may take 20 times
as much memory."""

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

PROBE_TOKENS = 1024
"""Tokens of the text that proves `max_tokens` at the end of a build, if the model allows more.

nomic-embed-text-v1.5 runs that many tokens in about two seconds, and its 8192 in a minute."""

PROBE_SECONDS = 10.0
"""Longest estimated time of a run of more than `PROBE_TOKENS` at the end of a build."""

TRIAL_SECONDS = 600.0
"""Longest time of the trial of a graph or a tokenizer."""

TRIAL_MEMORY_BYTES = 1 << 32
"""Most memory of a trial, in addition to three times the bytes of a graph."""

MAX_SHARDS = 256
"""Most files that one checkpoint is split over."""
