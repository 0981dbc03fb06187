"""Matryo: OpenAI's embeddings endpoint over Matryoshka text models on ONNX Runtime.

Layers, each importing only to its right:
`main, cli -> api -> scheduler -> engine -> graph -> core`.
"""

__version__ = "0.1.0"
