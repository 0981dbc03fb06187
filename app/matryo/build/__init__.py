"""From a checkpoint to an ONNX artefact on disk: pull, build, check, store.

`store` and `artifact` are all that serving needs, and import neither onnx nor
safetensors; everything else runs in `matryo pull` and `matryo build`.
"""
