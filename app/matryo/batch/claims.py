"""A claim: the right of one process to work on a batch, as long as its lease lasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matryo.batch.objects import Batch, Ending, File, LineError, Progress, WindowResult


class Claim(Protocol):
    """The right to work on one batch. Any thread may call; commits come one after another.

    Every method checks in its transaction that nobody took over the batch. Every method raises
    LeaseLost if somebody did, and StorageUnavailable if the database or the store does not answer;
    the same call may then be made again, and has its effect once.

    Attributes:
        batch: the batch as this claim saw it last.
        progress: what is committed.
        input: the input file, which stays readable until the batch has ended even if the caller
            deletes the file.
        epoch: number of this claim among all claims of the batch.
    """

    batch: Batch
    progress: Progress
    input: File
    epoch: int

    def renew(self) -> Batch:
        """The newest state of the batch, whose lease begins anew."""
        ...

    def reject(self, errors: Sequence[LineError]) -> Batch:
        """The batch, now failed, with the results that were committed. The claim ends.

        For an input that is refused, or that can no longer be read. A batch that is cancelling
        stays as it is.

        Args:
            errors: what is wrong with the input.
        """
        ...

    def begin(self, total: int, model: str | None) -> Batch:
        """The batch, now in progress. A batch that is not validating any more stays as it is.

        Args:
            total: number of lines of the input.
            model: the model that the lines name.
        """
        ...

    def commit(self, window: WindowResult) -> Batch:
        """The batch with a window's results, which are part of its files for good.

        The bytes go to the store first, then one transaction moves progress, counts and tokens.
        The lease begins anew. A window without lines of the input may be committed: it adds bytes
        and counts, such as errors of the lines that expired.

        Raises:
            StorageFull: the disk or the database has no room. Nothing was changed.
            StorageQuotaReached: the owner has no room for the bytes. Nothing was changed.
        """
        ...

    def finish(self, status: Ending) -> Batch:
        """The batch, now ended, with its result files. The claim ends.

        A batch that was cancelled meanwhile becomes cancelled, whatever `status` is.
        """
        ...

    def release(self, delay_s: float = 0) -> None:
        """Let another process claim the batch, or this one again, after `delay_s` seconds."""
        ...
