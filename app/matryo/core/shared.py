"""The folder that all processes of one server share."""

from __future__ import annotations

import os
from pathlib import Path


def shared_folder() -> Path | None:
    """The folder; None for a server of one process.

    The parent of several processes makes the folder and removes it. prometheus_client reads the
    same variable.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None
