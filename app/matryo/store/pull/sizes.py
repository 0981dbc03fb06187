"""The bytes that each file of a pull may have, which bound what a source can make us write."""

from __future__ import annotations

from collections.abc import Mapping

from matryo.core.errors import CheckpointMismatch
from matryo.store.limits import UNKNOWN_FILE_BYTES

Sizes = Mapping[str, int | None]
"""The bytes of each file, by name; None if the manifest does not say."""


def check_size(what: str, found: int, expected: int | None) -> None:
    """Hold the bytes of a file against those of the pinned file, before any is copied.

    Raises:
        CheckpointMismatch: they differ, so that the hash would differ as well; or the size is not
            pinned, and the file is larger than any model.
    """
    if expected is None and found > UNKNOWN_FILE_BYTES:
        raise CheckpointMismatch(
            f"{what} has {found:,} bytes; at most {UNKNOWN_FILE_BYTES:,} are copied of a file "
            "whose size is not pinned. Add bytes to the file in model.toml."
        )
    if expected is not None and found != expected:
        raise CheckpointMismatch(
            f"{what} has {found:,} bytes, but the pinned file has {expected:,}. Give the pinned "
            "file."
        )
