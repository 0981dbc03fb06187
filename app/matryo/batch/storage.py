"""The storage of the Batch API: files and batches, which outlive the process.

A database holds what is known, a store holds the bytes. Both may be shared by several processes
and replicas. Every method is for any thread and blocks; call it through `asyncio.to_thread`.
Every method raises StorageUnavailable if the database or the store does not answer, and
StorageFull if it has no room.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Protocol

from matryo.batch.claims import Claim
from matryo.batch.objects import Batch, Figures, File, Order, Page, Purpose
from matryo.batch.uploads import Upload
from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings

CHUNK_BYTES = 1024 * 1024
"""Most bytes of a chunk of `Storage.read`."""


class Storage(Protocol):
    """Files and batches of all owners. A caller sees its own only."""

    # --- files

    def add_file(
        self,
        owner: str,
        filename: str,
        purpose: Purpose = "batch",
        expires_after_s: int | None = None,
    ) -> Upload:
        """An upload of a new file.

        Args:
            owner: name of the caller's API key; empty if the server has no keys.
            filename: as the caller calls it.
            purpose: what the file is for.
            expires_after_s: life of the file; None for the server's own.

        Raises:
            StorageQuotaReached: the owner has too many files, or too many bytes.
        """
        ...

    def file(self, owner: str, file_id: str) -> File:
        """A file of the owner.

        Raises:
            UnknownFile: the owner has no such file.
        """
        ...

    def files(
        self,
        owner: str,
        *,
        purpose: Purpose | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
    ) -> Page[File]:
        """Files of the owner by their age; `pieces` is empty in each.

        Args:
            owner: as for `add_file`.
            purpose: only files for this; None for all.
            after: id of the file that the page follows; None for the first page.
            limit: most files of the page.
            order: `desc` for the newest first.

        Raises:
            UnknownFile: `after` is no file of the owner.
        """
        ...

    def delete_file(self, owner: str, file_id: str) -> None:
        """Remove a file. Its bytes stay until the batches that read it have ended.

        Raises:
            UnknownFile: the owner has no such file.
        """
        ...

    def read(self, file: File, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, in chunks of at most `CHUNK_BYTES`.

        Args:
            file: with pieces, as `file` and `Claim.input` give it.
            start: first byte.
            end: the byte after the last one; None for the end of the file.

        Raises:
            UnknownFile: the file was deleted meanwhile.
            StorageDamaged: the store lacks bytes of the file.
        """
        ...

    # --- batches

    def add_batch(
        self,
        owner: str,
        *,
        weight: float,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
        output_expires_after_s: int | None = None,
    ) -> Batch:
        """A new batch, which is validating.

        Args:
            owner: name of the caller's API key; empty if the server has no keys.
            weight: share of the caller in the scheduler.
            input_file_id: a file of the owner for the purpose `batch`.
            endpoint: path that each line asks for.
            completion_window: hours, as `24h`.
            metadata: the caller's own words.
            output_expires_after_s: life of the result files; None for the server's own.

        Raises:
            UnknownFile: the owner has no such file for the purpose `batch`.
            StorageQuotaReached: the owner has too many batches that have not ended, or no byte
                left for results.
        """
        ...

    def batch(self, owner: str, batch_id: str) -> Batch:
        """A batch of the owner.

        Raises:
            UnknownBatch: the owner has no such batch.
        """
        ...

    def batches(self, owner: str, *, after: str | None = None, limit: int = 20) -> Page[Batch]:
        """Batches of the owner, the newest first.

        Args:
            owner: as for `add_batch`.
            after: id of the batch that the page follows; None for the first page.
            limit: most batches of the page.

        Raises:
            UnknownBatch: `after` is no batch of the owner.
        """
        ...

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """The batch, now cancelling; whoever claims the batch finishes it.

        Raises:
            UnknownBatch: the owner has no such batch.
            BatchConflict: the batch has ended in another way than `cancelled`.
        """
        ...

    # --- work

    def claim(self, *, ending: bool = False) -> Claim | None:
        """The right to work on the batch that is due; None if no batch is.

        Batches that were cancelled, or whose window is over, come first. Then comes the owner
        whose last claim is longest ago, with the oldest batch. A batch is due if nobody holds it,
        or if its holder did not renew the lease.

        Args:
            ending: only batches that were cancelled, or whose window is over.
        """
        ...

    # --- care

    def sweep(self) -> None:
        """Remove files that expired, old batches, and bytes that crashes left behind.

        May run at any time, in several processes at once.
        """
        ...

    def figures(self) -> Figures:
        """Numbers for metrics."""
        ...

    def close(self) -> None:
        """Close the connections to the database."""
        ...


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name, made if nothing is there.

    Raises:
        SettingsInvalid: a package is missing, the database or the store cannot be used, or they do
            not belong together.
    """
    needed = ["sqlalchemy"]
    needed += ["psycopg"] if settings.batch_database else []
    needed += ["obstore"] if settings.batch_store else []
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise SettingsInvalid(
                f"MATRYO_BATCH is true, but the package {package} is not installed. Install it "
                "with: pip install 'matryo[batch]'"
            )
    from matryo.batch.sql.opening import open_sql_storage

    return open_sql_storage(settings)
