"""The store of the Batch API's bytes: objects with a name, written whole and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

MARK = "storage-id"
"""The object that says which database the store belongs to."""


class BlobMissing(Exception):
    """The store has no such object, or the object has fewer bytes than were asked for."""


class Blobs(Protocol):
    """Objects by name. Any thread may call.

    Every method raises StorageFull if the store has no room, and StorageUnavailable if the store
    does not answer, or refuses.
    """

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object. Readers and crashes see the whole object, or none."""
        ...

    def get(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` up to `end`.

        Raises:
            BlobMissing: the object, or a part of the range, is missing.
        """
        ...

    def size(self, key: str) -> int | None:
        """Number of bytes of an object; None if there is none."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone do not count."""
        ...

    def keys(self) -> Iterator[str]:
        """Names of all objects in any order, those that were there at the call included."""
        ...

    def tidy(self) -> None:
        """Remove what a crash left of objects that were being written."""
        ...
