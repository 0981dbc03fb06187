"""Any order of calls by any number of holders: each batch's files are what live holders wrote."""

from __future__ import annotations

import contextlib
from typing import Literal

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from sqlalchemy import select

from matryo.batch.objects import ENDED, Batch, Counts, Ending, LeaseLost
from matryo.batch.sql.claims import SqlClaim
from matryo.batch.sql.tables import batches
from matryo.core.errors import BatchConflict
from tests.storages import (
    DAY_S,
    LIMITS,
    Place,
    add_batch,
    add_file,
    claimed,
    folder_place,
    memory_folder,
    results,
    window,
)

_OWNERS = ("ann", "bob")
_TERMINAL = {
    "completed": "completed_at",
    "expired": "expired_at",
    "cancelled": "cancelled_at",
    "failed": "failed_at",
}


class Machine(RuleBasedStateMachine):
    """Owners, and holders of whom some are dead without knowing, on one storage.

    Attributes:
        written: by batch, the lines that live holders committed: results, and errors.
        holders: by batch, the claim that may change the batch, and when its lease runs out.
        over: claims that were released, or that a sweep fenced.
    """

    batches_ = Bundle("batches")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.opened = contextlib.ExitStack()
        self.place = self.open_place()
        self.storages = [self.place.storage(), self.place.storage()]
        self.written: dict[str, tuple[list[bytes], list[bytes]]] = {}
        self.holders: dict[str, tuple[SqlClaim, float]] = {}
        self.seen: dict[str, Batch] = {}
        self.over: list[SqlClaim] = []
        self.deleted: set[str] = set()
        self.n_lines = 0

    def open_place(self) -> Place:
        """A database and a store without anything."""
        return folder_place(self.opened.enter_context(memory_folder()))

    def teardown(self) -> None:
        """Close what was opened."""
        self.place.close()
        self.opened.close()

    @initialize(target=batches_)
    def first(self) -> Batch:
        """A first batch."""
        return self.added("ann")

    @rule(target=batches_, owner=st.sampled_from(_OWNERS))
    def add(self, owner: str) -> Batch:
        """An owner adds a batch."""
        return self.added(owner)

    def added(self, owner: str) -> Batch:
        """A new batch of an owner."""
        batch = add_batch(self.storages[0], add_file(self.storages[1], owner=owner), owner)
        self.written[batch.id] = ([], [])
        return batch

    @rule(target=claims, which=st.integers(0, 1), ending=st.booleans())
    def claim(self, which: int, ending: bool) -> object:
        """A process claims: never what a live holder has, and always something if any is free."""
        claim = self.storages[which].claim(ending=ending)
        now = self.place.clock.now
        free = {
            batch_id
            for batch_id in self.written
            if self.state(batch_id).status not in ENDED
            and (batch_id not in self.holders or self.holders[batch_id][1] <= now)
            and (not ending or self.must_end(batch_id))
        }
        if claim is None:
            assert not free
            return multiple()
        assert claim.batch.id in free
        if any(map(self.must_end, free)):
            assert self.must_end(claim.batch.id)
        self.holders[claim.batch.id] = (claim, now + LIMITS.lease_s)
        return claim

    @rule(claim=claims, n_good=st.integers(0, 2), n_bad=st.integers(0, 2))
    def commit(self, claim: SqlClaim, n_good: int, n_bad: int) -> None:
        """A holder begins, and commits a window; a dead one learns that it is dead."""
        lines = [f"{claim.epoch}-{self.n_lines + number}\n".encode() for number in range(4)]
        self.n_lines += 4
        good, bad = lines[:n_good], lines[2 : 2 + n_bad]
        if not self.is_live(claim):
            for act in (lambda: claim.begin(9, "m"), lambda: claim.commit(window())):
                try:
                    act()
                except LeaseLost:
                    continue
                raise AssertionError("a dead holder was let in")
            return
        claim.begin(9, "mini")
        batch = claim.commit(window(b"".join(good), b"".join(bad), 1))
        self.written[batch.id][0].extend(good)
        self.written[batch.id][1].extend(bad)
        self.renewed(claim)

    @rule(claim=claims)
    def renew(self, claim: SqlClaim) -> None:
        """A holder shows life."""
        live = self.is_live(claim)
        try:
            batch = claim.renew()
        except LeaseLost:
            assert not live
        else:
            assert live
            assert batch == self.state(batch.id)
            self.renewed(claim)

    @rule(claim=consumes(claims), delay_s=st.sampled_from([0, 10]))
    def release(self, claim: SqlClaim, delay_s: float) -> None:
        """A holder lets go."""
        live = self.is_live(claim)
        try:
            claim.release(delay_s)
        except LeaseLost:
            assert not live
        else:
            assert live
            self.holders[claim.batch.id] = (claim, self.place.clock.now + delay_s)
            self.over.append(claim)

    @rule(claim=claims, status=st.sampled_from(["completed", "expired", "cancelled", "failed"]))
    def end(self, claim: SqlClaim, status: Ending | Literal["failed"]) -> None:
        """A holder ends its batch."""
        live, before = self.is_live(claim), self.state(claim.batch.id).status
        try:
            batch = claim.reject([]) if status == "failed" else claim.finish(status)
        except LeaseLost:
            assert not live
            return
        assert live
        if before == "cancelling":
            assert batch.status == ("cancelling" if status == "failed" else "cancelled")
        else:
            assert batch.status == status
        if batch.status in ENDED:
            assert getattr(batch, _TERMINAL[batch.status]) is not None
            del self.holders[batch.id]

    @rule(batch=batches_)
    def cancel(self, batch: Batch) -> None:
        """An owner cancels."""
        before = self.state(batch.id).status
        try:
            after = self.storages[1].cancel(batch.owner, batch.id)
        except BatchConflict:
            assert before in ENDED - {"cancelled"}
        else:
            assert after.status == ("cancelled" if before == "cancelled" else "cancelling")

    @rule(batch=batches_)
    def delete_input(self, batch: Batch) -> None:
        """An owner deletes an input that its batch may still read."""
        if batch.id not in self.deleted:
            self.storages[0].delete_file(batch.owner, batch.input_file_id)
            self.deleted.add(batch.id)

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.place.clock.advance(seconds)

    @rule()
    @precondition(lambda self: self.place.clock.now < 1_800_000_000 + DAY_S)
    def wait_for_a_day(self) -> None:
        """The windows of all batches end."""
        self.place.clock.advance(DAY_S)

    @rule()
    def sweep(self) -> None:
        """A sweep leaves exactly the bytes that the database knows; it may fence dead holders."""
        now = self.place.clock.now
        self.storages[0].sweep()
        assert self.place.stored() == self.place.known()
        for batch_id, (claim, until) in list(self.holders.items()):
            if until <= now and claim.epoch != self.epoch(batch_id):
                self.over.append(claim)

    @invariant()
    def what_is_seen(self) -> None:
        """Statuses only go on, counts are those of the lines, and results are the lines."""
        for batch_id, (good, bad) in self.written.items():
            batch = self.state(batch_id)
            before = self.seen.get(batch_id)
            if before is not None and before.status in ENDED:
                assert batch == before
            total = batch.counts.total
            assert batch.counts == Counts(total, len(good), len(bad))
            if batch.status in ENDED:
                found = results(self.storages[0], batch, batch.owner)
                assert found == [b"".join(good), b"".join(bad)]
            else:
                assert batch.output_file_id is None
            self.seen[batch_id] = batch

    # --- what the test knows

    def state(self, batch_id: str) -> Batch:
        """A batch as its owner sees it."""
        for owner in _OWNERS:
            for batch in self.storages[1].batches(owner, limit=1000).items:
                if batch.id == batch_id:
                    return batch
        raise AssertionError(f"{batch_id} is lost")

    def must_end(self, batch_id: str) -> bool:
        """Whether a batch was cancelled, or its window is over."""
        batch = self.state(batch_id)
        return batch.status == "cancelling" or batch.expires_at <= int(self.place.clock.now)

    def is_live(self, claim: SqlClaim) -> bool:
        """Whether a claim is the last of its batch, and its batch has not ended."""
        held = self.holders.get(claim.batch.id)
        return held is not None and held[0] is claim and claim not in self.over

    def renewed(self, claim: SqlClaim) -> None:
        """The lease of a claim begins anew."""
        until = self.place.clock.now + LIMITS.lease_s
        self.holders[claim.batch.id] = (claim, until)

    def epoch(self, batch_id: str) -> int:
        """The number of a batch's last claim."""
        with self.place.database().reading() as transaction:
            query = select(batches.c.epoch).where(batches.c.id == batch_id)
            return transaction.connection.execute(query).scalar_one()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


def test_the_machine_can_fail() -> None:
    """The machine's own view of a live holder is the storage's."""
    machine = Machine()
    machine.first()
    first = claimed(machine.storages[0])
    machine.holders[first.batch.id] = (first, machine.place.clock.now + 60)
    machine.wait(61)
    second = machine.claim(1, ending=False)
    assert second is not first
    assert not machine.is_live(first)
    machine.teardown()
