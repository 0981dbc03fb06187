"""From a checkpoint to an artefact: read, write the graph, check, publish.

`checkpoint` reads safetensors, GGUF and ONNX files, `arch` holds one module for each
`model_type`, `precision` quantises, `emit` writes ONNX, `check` compares the graph with a
numpy forward, `build` does all of these in order, and `provision` does what commands ask
for. Nothing that serves imports this package, except in a process that builds and ends.
"""
