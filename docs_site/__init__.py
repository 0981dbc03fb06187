"""The site of README and docs/: hooks of MkDocs, and pages that are written from the code."""
