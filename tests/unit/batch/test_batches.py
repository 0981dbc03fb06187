"""Batches as their owner sees them: made, listed, cancelled, and ended."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from matryo.batch.objects import Counts, LineError
from matryo.batch.sql.storage import SqlStorage
from matryo.core.errors import (
    BatchConflict,
    InvalidRequest,
    StorageQuotaReached,
    UnknownBatch,
    UnknownFile,
)
from tests.storages import (
    DAY_S,
    START,
    Place,
    add_batch,
    add_file,
    claimed,
    content,
    results,
    window,
)


def test_a_new_batch(storage: SqlStorage) -> None:
    """A new batch is validating, has the caller's words, and expires after its window."""
    file = add_file(storage)
    batch = storage.add_batch(
        "ann",
        weight=2.5,
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata={"name": "nightly \0\ud800"},
        output_expires_after_s=3600,
    )
    assert storage.batch("ann", batch.id) == batch
    assert (batch.status, batch.counts, batch.errors) == ("validating", Counts(), ())
    assert (batch.created_at, batch.expires_at) == (START, START + DAY_S)
    assert (batch.caller_weight, batch.metadata) == (2.5, {"name": "nightly \0\ud800"})
    assert batch.output_file_id is None


@pytest.mark.parametrize("completion_window", ["24", "h", "0h", "-1h", "1.5h", "24h ", ""])
def test_windows_are_hours(storage: SqlStorage, completion_window: str) -> None:
    """A window that is no number of hours is refused, with the field's name."""
    file = add_file(storage)
    with pytest.raises(InvalidRequest) as caught:
        storage.add_batch(
            "ann",
            weight=1,
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window=completion_window,
        )
    assert caught.value.param == "completion_window"


def test_the_input_must_be_the_owners(storage: SqlStorage) -> None:
    """A batch over a file that is missing, another's, or a result is refused."""
    batch = add_batch(storage)
    claim = claimed(storage)
    claim.begin(1, None)
    claim.commit(window())
    output_id = claim.finish("completed").output_file_id
    assert output_id
    for owner, file_id in [
        ("bob", batch.input_file_id),
        ("ann", "file-0"),
        ("ann", "nothing"),
        ("ann", output_id),
    ]:
        with pytest.raises(UnknownFile) as caught:
            storage.add_batch(
                owner,
                weight=1,
                input_file_id=file_id,
                endpoint="/v1/embeddings",
                completion_window="24h",
            )
        assert caught.value.param == "input_file_id"


def test_an_owner_sees_its_own_only(storage: SqlStorage) -> None:
    """Another owner's id is refused with the same error as an id of nobody."""
    batch = add_batch(storage)
    for owner, batch_id in [("bob", batch.id), ("ann", "batch_0"), ("ann", "x\0")]:
        with pytest.raises(UnknownBatch, match="No batch found with id"):
            storage.batch(owner, batch_id)
        with pytest.raises(UnknownBatch):
            storage.cancel(owner, batch_id)
        with pytest.raises(UnknownBatch) as caught:
            storage.batches(owner, after=batch_id)
        assert caught.value.param == "after"
    assert storage.batches("bob").items == ()
    assert storage.batch("ann", batch.id).status == "validating"


def test_pages(storage: SqlStorage) -> None:
    """Pages follow each other from the newest batch on, and say whether more follow."""
    ids = [add_batch(storage).id for _ in range(5)]
    first = storage.batches("ann", limit=3)
    assert ([batch.id for batch in first.items], first.has_more) == (ids[:1:-1], True)
    second = storage.batches("ann", limit=3, after=ids[2])
    assert ([batch.id for batch in second.items], second.has_more) == (ids[1::-1], False)


def test_a_completed_batch(place: Place, storage: SqlStorage) -> None:
    """The windows' bytes are the result files in their order, and counts and tokens are sums."""
    batch = add_batch(storage)
    claim = claimed(storage)
    assert claim.begin(3, "mini").status == "in_progress"
    claim.commit(window(b"a\n", b"", 1))
    seen = storage.batch("ann", batch.id)
    assert (seen.counts, seen.output_file_id) == (Counts(3, 1, 0), None)
    place.clock.advance(10)
    claim.commit(window(b"b\n", b"e\n", 2))
    ended = claim.finish("completed")
    assert ended == storage.batch("ann", batch.id)
    assert (ended.status, ended.model, ended.n_tokens) == ("completed", "mini", 9)
    assert (ended.counts, ended.errors) == (Counts(3, 2, 1), ())
    assert (ended.in_progress_at, ended.finalizing_at) == (START, START + 10)
    assert (ended.completed_at, ended.failed_at, ended.cancelled_at) == (START + 10, None, None)
    assert results(storage, ended) == [b"a\nb\n", b"e\n"]
    output = storage.file("ann", ended.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.expires_at == START + 10 + 30 * DAY_S
    assert place.stored() == place.known()


def test_results_expire_as_the_batch_says(place: Place, storage: SqlStorage) -> None:
    """`output_expires_after_s` is the life of both result files."""
    file = add_file(storage)
    storage.add_batch(
        "ann",
        weight=1,
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        output_expires_after_s=3600,
    )
    claim = claimed(storage)
    claim.begin(2, None)
    claim.commit(window(b"a\n", b"e\n", 2))
    ended = claim.finish("completed")
    for file_id in (ended.output_file_id, ended.error_file_id):
        assert storage.file("ann", file_id or "").expires_at == START + 3600


def test_a_refused_input(storage: SqlStorage) -> None:
    """A batch whose input is refused is failed, names each error, and never comes again."""
    batch = add_batch(storage)
    errors = (
        LineError("invalid_json_line", "This line is no JSON.", 3),
        LineError("duplicate_custom_id", "Twice.", None, "custom_id"),
    )
    ended = claimed(storage).reject(errors)
    assert ended == storage.batch("ann", batch.id)
    assert (ended.status, ended.errors, ended.failed_at) == ("failed", errors, START)
    assert (ended.output_file_id, ended.finalizing_at) == (None, None)
    assert storage.claim() is None


def test_an_input_that_is_lost_midway(storage: SqlStorage) -> None:
    """A batch in progress may fail too, and keeps what was committed."""
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(3, None)
    claim.commit(window(b"a\n"))
    ended = claim.reject([LineError("missing_input", "Gone.")])
    assert (ended.status, results(storage, ended)) == ("failed", [b"a\n", b""])


def test_cancel(storage: SqlStorage) -> None:
    """A cancelled batch is cancelling until its holder ends it, with partial results."""
    batch = add_batch(storage)
    claim = claimed(storage)
    claim.begin(3, None)
    claim.commit(window(b"a\n"))
    seen = storage.cancel("ann", batch.id)
    assert (seen.status, seen.cancelling_at, seen.cancelled_at) == ("cancelling", START, None)
    assert storage.cancel("ann", batch.id) == seen
    assert claim.renew().status == "cancelling"
    claim.commit(window(b"", b"c\n"))
    ended = claim.finish("completed")  # a cancelled batch never completes
    assert (ended.status, ended.cancelled_at, ended.finalizing_at) == ("cancelled", START, None)
    assert results(storage, ended) == [b"a\n", b"c\n"]
    assert storage.cancel("ann", batch.id) == ended


def test_cancel_before_and_during_validation(storage: SqlStorage) -> None:
    """A batch that is cancelled while it is validated is neither begun nor failed."""
    batch = add_batch(storage)
    claim = claimed(storage)
    storage.cancel("ann", batch.id)
    assert claim.begin(3, "mini").status == "cancelling"
    assert claim.reject([LineError("x", "y")]).status == "cancelling"
    assert claim.finish("cancelled").status == "cancelled"
    assert storage.batch("ann", batch.id).counts == Counts()


def test_an_ended_batch_cannot_be_cancelled(storage: SqlStorage) -> None:
    """Cancelling a batch that ended in another way is a conflict that names the status."""
    for ending in ("completed", "expired"):
        batch = add_batch(storage)
        claim = claimed(storage)
        claim.begin(0, None)
        claim.finish(ending)
        with pytest.raises(BatchConflict, match=f"Cannot cancel a batch with status '{ending}'"):
            storage.cancel("ann", batch.id)
        assert storage.batch("ann", batch.id).status == ending


def test_batches_of_an_owner(place: Place) -> None:
    """Batches of an owner that have not ended are bounded; an ended one makes room."""
    storage = place.storage(key_batches=2)
    add_batch(storage)
    add_batch(storage)
    with pytest.raises(StorageQuotaReached, match="unfinished batches of API key `ann`: Limit 2"):
        add_batch(storage)
    add_batch(storage, owner="bob")
    claim = claimed(storage)
    claim.begin(0, None)
    claim.finish("completed")
    add_batch(storage)


def test_limits_hold_for_processes_together(place: Place) -> None:
    """Of many processes that add batches at once, no more succeed than one owner may have."""
    file = add_file(place.storage())
    others = [place.storage(key_batches=3) for _ in range(6)]
    start = threading.Barrier(len(others))

    def work(other: SqlStorage) -> bool:
        start.wait()
        try:
            add_batch(other, file)
        except StorageQuotaReached:
            return False
        return True

    with ThreadPoolExecutor(len(others)) as pool:
        assert sum(pool.map(work, others)) == 3


def test_bytes_hold_for_processes_together(place: Place) -> None:
    """Of many uploads at once, no more succeed than fit into the owner's bytes."""
    others = [place.storage(key_bytes=35) for _ in range(6)]
    start = threading.Barrier(len(others))

    def work(other: SqlStorage) -> bool:
        start.wait()
        try:
            add_file(other, b"x" * 10)
        except StorageQuotaReached:
            return False
        return True

    with ThreadPoolExecutor(len(others)) as pool:
        assert sum(pool.map(work, others)) == 3
    assert others[0].figures().stored_bytes <= 35


def test_results_count_for_the_owner(place: Place) -> None:
    """A window past the owner's bytes changes nothing, and passes once the owner has made room."""
    storage = place.storage(key_bytes=30)
    file = add_file(storage, b"x" * 10)
    spare = add_file(storage, b"y" * 10)
    batch = add_batch(storage, file)
    claim = claimed(storage)
    claim.begin(3, None)
    claim.commit(window(b"12345678\n"))
    stored = place.stored()
    with pytest.raises(StorageQuotaReached, match="Limit 30, Used 29, Requested 9"):
        claim.commit(window(b"abcdefgh\n"))
    assert place.stored() == stored
    assert storage.batch("ann", batch.id).counts.completed == 1
    storage.delete_file("ann", spare.id)
    claim.commit(window(b"abcdefgh\n"))
    assert storage.figures().stored_bytes == 28
    ended = claim.finish("completed")
    assert results(storage, ended) == [b"12345678\nabcdefgh\n", b""]
    assert storage.figures().stored_bytes == 28


def test_what_ends_a_batch_has_room(place: Place) -> None:
    """A cancelled batch takes the lines that say so, although the owner has no room."""
    storage = place.storage(key_bytes=10)
    file = add_file(storage, b"x" * 9)
    batch = add_batch(storage, file)
    claim = claimed(storage)
    claim.begin(1, None)
    storage.cancel("ann", batch.id)
    claim.commit(window(b"", b"cancelled\n"))
    assert results(storage, claim.finish("cancelled")) == [b"", b"cancelled\n"]


def test_no_batch_without_room_for_results(place: Place) -> None:
    """A batch of an owner without a free byte is refused at once."""
    storage = place.storage(key_bytes=10)
    file = add_file(storage, b"x" * 10)
    with pytest.raises(StorageQuotaReached, match="bytes of files"):
        add_batch(storage, file)


def test_figures(place: Place, storage: SqlStorage) -> None:
    """Figures count batches by status, and name the oldest one and the next window's end."""
    assert dataclasses.astuple(storage.figures()) == ({}, None, None, 0)
    add_batch(storage)
    place.clock.advance(5)
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(1, None)
    figures = storage.figures()
    assert figures.batches == {"validating": 1, "in_progress": 1}
    assert (figures.oldest_at, figures.next_expiry_at) == (START, START + DAY_S)
    assert figures.stored_bytes == 12
    claim.finish("completed")
    assert storage.figures().oldest_at == START + 5


def test_old_batches_are_swept(place: Place, storage: SqlStorage) -> None:
    """An ended batch goes with its files, after the retention; one that has not ended stays."""
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(1, None)
    claim.commit(window())
    ended = claim.finish("completed")
    place.clock.advance(30 * DAY_S - 1)
    waiting = add_batch(storage)
    storage.sweep()
    assert content(storage, storage.file("ann", ended.output_file_id or "")) == b"a\n"
    place.clock.advance(1)
    storage.sweep()
    assert [batch.id for batch in storage.batches("ann").items] == [waiting.id]
    assert place.stored() == place.known()
