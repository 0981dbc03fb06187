"""What lies on disk: checkpoints, artefacts, vocabularies, and how each gets there whole.

`layout` knows the paths and the locks, `files` writes, renames and removes, `artifact` and
`encodings` find what serving needs, and `pull` fetches. Serving imports all but `pull`.
"""
