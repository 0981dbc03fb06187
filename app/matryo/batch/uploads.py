"""An upload: bytes that arrive for a file."""

from __future__ import annotations

from typing import Protocol

from matryo.batch.objects import File

PIECE_BYTES = 8 * 1024 * 1024
"""Bytes that an upload holds in memory at most, besides the chunk that is written."""


class Upload(Protocol):
    """A file that is not yet there. One thread at a time may use an upload.

    The file appears as a whole with `commit`, or never. Bytes of an upload that nobody ends are
    removed by `Storage.sweep`.

    Attributes:
        n_bytes: bytes written.
        expires_after_s: life of the file, which may be changed until `commit`; None for the
            server's own.
    """

    n_bytes: int
    expires_after_s: int | None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            FileTooLarge: the upload has more bytes than one file may have.
            StorageQuotaReached: the owner has no room for the bytes.
            StorageFull: the disk or the database has no room.
            StorageUnavailable: the database or the store does not answer.
        """

    def commit(self) -> File:
        """The file, which is there from now on.

        Raises:
            StorageFull, StorageUnavailable, FileTooLarge, StorageQuotaReached: as `write`. After
                StorageUnavailable, `commit` may be called again.
        """
        ...

    def abort(self) -> None:
        """Remove what was written; nothing happens after `commit`. Never raises."""
