"""Builds an artefact from a checkpoint: reads the weights, writes a graph, checks and publishes it.

`checkpoint` reads safetensors, GGUF and ONNX files. `arch` has one module for each `model_type`.
`precision` writes matrix products and rounds weights. `emit` writes ONNX. `check` compares the
graph with a numpy forward. `build` calls these in order, and `provision` calls `build` for
commands. A serving process never imports this package: a child process builds, and then ends.
"""
