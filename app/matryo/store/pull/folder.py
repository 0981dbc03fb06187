"""A folder on this machine as a source of files."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import copy_file
from matryo.store.unread import explain_folder


def from_folder(folder: Path, into: Path, names: Collection[str], reporter: Reporter) -> None:
    """Copy the named files of `folder` to `into`.

    Raises:
        PullFailed: the folder lacks one of them, or this user may not read it.
    """
    reporter.say(f"copying {', '.join(names)} from {folder}")
    for name in names:
        source = folder / name
        if not source.is_file():
            raise PullFailed(
                f"{source}: no such file; {folder} must hold {', '.join(names)}. "
                f"{explain_folder(folder)}".rstrip()
            )
        if not os.access(source, os.R_OK):
            raise PullFailed(f"{source} cannot be read: give this user access to the file.")
        with reporter.bar(f"copying {name}", source.stat().st_size) as advance:
            copy_file(source, into / name, advance)
