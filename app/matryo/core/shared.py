"""The folder that all processes of one server share."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in the environment; prometheus_client reads the same variable."""


def shared_folder() -> Path | None:
    """The folder; None for a server of one process.

    The parent of several processes makes the folder and removes it.
    """
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None
