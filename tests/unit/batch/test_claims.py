"""Claims: one holder of a batch at a time, and nothing from a holder that lost the batch."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete

from matryo.batch.objects import LeaseLost, Progress
from matryo.batch.sql.storage import SqlStorage
from matryo.batch.sql.tables import files
from tests.storages import DAY_S, Place, add_batch, add_file, claimed, content, results, window


def test_one_holder(place: Place, storage: SqlStorage) -> None:
    """A batch that is held is nobody else's, in this process or another, until it is released."""
    batch = add_batch(storage)
    other = place.storage()
    claim = claimed(storage)
    assert claim.batch.id == batch.id
    assert other.claim() is None
    claim.release()
    assert claimed(other).batch.id == batch.id
    with pytest.raises(LeaseLost):
        claim.renew()


def test_a_release_may_wait(place: Place, storage: SqlStorage) -> None:
    """A batch that is released for later is not due before."""
    add_batch(storage)
    claimed(storage).release(delay_s=30)
    place.clock.advance(29)
    assert storage.claim() is None
    place.clock.advance(1)
    assert claimed(storage).epoch == 2


def test_a_lease_runs_out(place: Place, storage: SqlStorage) -> None:
    """A lease that is not renewed is taken over, and each sign of life begins it anew."""
    add_batch(storage)
    claim = claimed(storage)
    for live in (claim.renew, lambda: claim.begin(3, None), lambda: claim.commit(window())):
        place.clock.advance(59)
        live()
        assert storage.claim() is None
    place.clock.advance(60)
    taken = claimed(storage)
    assert (taken.epoch, taken.progress) == (2, Progress(1, 2, 1))
    assert taken.batch.status == "in_progress"


def test_a_stale_holder_is_kept_out(place: Place, storage: SqlStorage) -> None:
    """Nothing that a holder does after it was taken over changes the batch or its files."""
    batch = add_batch(storage)
    stale = claimed(storage)
    stale.begin(3, None)
    stale.commit(window(b"1\n"))
    place.clock.advance(61)
    claim = claimed(place.storage())
    for act in (
        lambda: stale.commit(window(b"stale\n")),
        stale.renew,
        lambda: stale.begin(9, "other"),
        lambda: stale.reject([]),
        lambda: stale.finish("completed"),
        stale.release,
    ):
        with pytest.raises(LeaseLost):
            act()
    assert storage.batch("ann", batch.id) == claim.renew()
    claim.commit(window(b"2\n"))
    claim.commit(window(b"3\n"))
    ended = claim.finish("completed")
    assert results(storage, ended) == [b"1\n2\n3\n", b""]
    storage.sweep()
    assert place.stored() == place.known()


@pytest.mark.parametrize("act", ["renew", "commit", "finish", "release", "begin", "reject"])
def test_a_stale_holder_is_told_at_once(place: Place, storage: SqlStorage, act: str) -> None:
    """The first thing that a holder does after it was taken over raises."""
    add_batch(storage)
    stale = claimed(storage)
    stale.begin(3, None)
    place.clock.advance(61)
    claimed(storage)
    arguments = {"commit": (window(),), "finish": ("expired",), "begin": (1, ""), "reject": ([],)}
    with pytest.raises(LeaseLost):
        getattr(stale, act)(*arguments.get(act, ()))


def test_bytes_of_a_stale_holder(place: Place, storage: SqlStorage) -> None:
    """Bytes that a stale holder wrote before it was refused are in no file, and are swept."""
    add_batch(storage)
    stale = claimed(storage)
    stale.begin(2, None)
    place.clock.advance(61)
    key = f"batches/{stale.batch.id}/1-0-abcd-output"
    place.make_blobs().put(key, b"stale\n")  # a write that took longer than the lease
    claim = claimed(storage)
    storage.sweep()
    assert key not in place.stored()
    claim.commit(window(b"new\n"))
    assert results(storage, claim.finish("completed")) == [b"new\n", b""]


def test_a_sweep_spares_a_live_holder(place: Place, storage: SqlStorage) -> None:
    """Bytes of a window that its live holder is about to commit stay."""
    add_batch(storage)
    claim = claimed(storage)
    key = f"batches/{claim.batch.id}/1-0-abcd-output"
    place.make_blobs().put(key, b"new\n")
    storage.sweep()
    assert key in place.stored()
    claim.release()
    storage.sweep()
    assert key not in place.stored()


def test_a_sweep_fences_a_dead_holder(place: Place, storage: SqlStorage) -> None:
    """Once a sweep took the bytes of a holder whose lease ran out, that holder is kept out."""
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(1, None)
    place.make_blobs().put(f"batches/{claim.batch.id}/1-0-abcd-output", b"new\n")
    place.clock.advance(61)
    storage.sweep()
    assert place.stored() == place.known()
    with pytest.raises(LeaseLost):
        claim.commit(window())


def test_a_sweep_leaves_foreign_objects(place: Place, storage: SqlStorage) -> None:
    """Objects with names that this package never gives are somebody else's, and stay."""
    place.make_blobs().put("notes/readme.txt", b"mine")
    storage.sweep()
    assert place.stored() == {"notes/readme.txt"}


def test_owners_take_turns(place: Place, storage: SqlStorage) -> None:
    """Claims go round the owners, and each owner's batches follow their age."""
    expected = {owner: [add_batch(storage, owner=owner).id for _ in range(2)] for owner in "abc"}
    seen: list[tuple[str, str]] = []
    for _ in range(6):
        claim = claimed(storage)
        claim.begin(0, None)
        claim.finish("completed")
        seen.append((claim.batch.owner, claim.batch.id))
        place.clock.advance(1)
    assert [owner for owner, _ in seen] == list("abcabc")
    assert {owner: [i for o, i in seen if o == owner] for owner in "abc"} == expected


def test_batches_that_must_end_come_first(place: Place, storage: SqlStorage) -> None:
    """A cancelled batch and one whose window is over come before all others."""
    late = add_batch(storage)
    place.clock.advance(DAY_S - 1)
    add_batch(storage, owner="bob")
    cancelled = add_batch(storage, owner="bob")
    assert storage.claim(ending=True) is None
    storage.cancel("bob", cancelled.id)
    place.clock.advance(1)
    ids = {claimed(storage).batch.id, claimed(storage).batch.id}
    assert ids == {late.id, cancelled.id}
    assert storage.claim(ending=True) is None
    assert claimed(storage).batch.status == "validating"


def test_an_ended_claim_is_over(storage: SqlStorage) -> None:
    """After `finish` a claim changes nothing more."""
    add_batch(storage)
    claim = claimed(storage)
    claim.begin(0, None)
    claim.finish("completed")
    with pytest.raises(LeaseLost):
        claim.commit(window())
    assert storage.claim() is None


def test_the_input_is_read_on_from_the_progress(place: Place, storage: SqlStorage) -> None:
    """The next holder finds the input, and how many of its bytes are done."""
    add_batch(storage, add_file(storage, b"1\n2\n3\n"))
    claim = claimed(storage)
    claim.begin(3, None)
    claim.commit(window(b"a\nb\n", n_lines=2))
    claim.release()
    claim = claimed(place.storage())
    rest = b"".join(storage.read(claim.input, claim.progress.n_bytes))
    assert (claim.progress, rest) == (Progress(2, 4, 1), b"3\n")
    assert content(storage, claim.input) == b"1\n2\n3\n"


def test_many_claimers(place: Place, storage: SqlStorage) -> None:
    """Of many processes that claim at once, each batch has one holder, and no batch is left."""
    ids = {add_batch(storage, owner=f"owner{number % 3}").id for number in range(12)}
    others = [place.storage() for _ in range(6)]
    start = threading.Barrier(len(others))

    def work(other: SqlStorage) -> list[str]:
        start.wait()
        held: list[str] = []
        while claim := other.claim():
            held.append(claim.batch.id)
        return held

    with ThreadPoolExecutor(len(others)) as pool:
        held = [batch_id for found in pool.map(work, others) for batch_id in found]
    assert sorted(held) == sorted(ids)


def test_a_missing_input_fails_the_batch(place: Place, storage: SqlStorage) -> None:
    """A batch whose input was removed by hand is failed, and others go on."""
    lost, batch = add_batch(storage), add_batch(storage)
    with place.database().writing() as transaction:
        transaction.connection.execute(delete(files).where(files.c.id == lost.input_file_id))
    assert claimed(storage).batch.id == batch.id
    failed = storage.batch("ann", lost.id)
    assert failed.status == "failed"
    assert failed.errors[0].message == (
        f"The input file {lost.input_file_id} is missing. Upload it again."
    )
