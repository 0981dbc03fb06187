"""A folder on this machine as a source of files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import copy_file


def from_folder(folder: Path, into: Path, names: Collection[str], reporter: Reporter) -> None:
    """Copy the named files of `folder` to `into`.

    Raises:
        PullFailed: the folder lacks one of them.
    """
    reporter.say(f"copying {', '.join(names)} from {folder}")
    for name in names:
        source = folder / name
        if not source.is_file():
            raise PullFailed(f"{source}: no such file; {folder} must hold {', '.join(names)}")
        with reporter.bar(f"copying {name}", source.stat().st_size) as advance:
            copy_file(source, into / name, advance)
