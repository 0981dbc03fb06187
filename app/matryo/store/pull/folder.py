"""A folder on this machine as a source of files."""

from __future__ import annotations

import os
from pathlib import Path

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import copy_file, room_for
from matryo.store.pull.sizes import Sizes, check_size
from matryo.store.unread import explain_folder


def from_folder(folder: Path, into: Path, files: Sizes, reporter: Reporter) -> None:
    """Copy the named files of `folder` to `into`.

    Raises:
        PullFailed: the folder lacks one of them, or this user may not read it.
        CheckpointMismatch: one has another size than the manifest's.
    """
    reporter.say(f"copying {', '.join(files)} from {folder}")
    for name in files:
        source = folder / name
        if not source.is_file():
            raise PullFailed(
                f"{source}: no such file; {folder} must hold {', '.join(files)}. "
                f"{explain_folder(folder)}".rstrip()
            )
        if not os.access(source, os.R_OK):
            raise PullFailed(f"{source} cannot be read: give this user access to the file.")
        n_bytes = source.stat().st_size
        check_size(f"{source}", n_bytes, files[name])
        with room_for(into, n_bytes), reporter.bar(f"copying {name}", n_bytes) as advance:
            copy_file(source, into / name, advance)
