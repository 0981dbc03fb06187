"""Models as data: the manifest of each model folder, its golden values, and the catalogue.

Covers what a `model.toml` and a `golden.json` may say, reading and checking both, and
finding the folders. Nothing here opens a checkpoint or an artefact.
"""
