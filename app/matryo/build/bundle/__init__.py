"""Makes a bundle: one executable file that holds the server, its command line and a model.

`stage` copies an artefact, without its weights, into a store that the code will unpack. `freeze`
collects interpreter and libraries with PyInstaller, and compiles the launcher with Zig.
`write` puts the parts together. `matryo.store.bundle` has the format.
"""
