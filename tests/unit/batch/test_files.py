"""Files: uploads that appear whole or never, lists, ranges, and what an owner may have."""

from __future__ import annotations

import itertools

import pytest

from matryo.batch.sql import uploads
from matryo.batch.sql.storage import SqlStorage
from matryo.batch.storage import CHUNK_BYTES
from matryo.core.errors import (
    FileTooLarge,
    StorageDamaged,
    StorageQuotaReached,
    StorageUnavailable,
    UnknownFile,
)
from tests.storages import DAY_S, START, Place, add_batch, add_file, claimed, content


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of ten bytes."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", 10)


def test_an_upload_appears_with_its_commit(storage: SqlStorage) -> None:
    """Nobody sees a file before `commit`; then the file has every byte, its name and its life."""
    upload = storage.add_file("ann", "in.jsonl", expires_after_s=3600)
    upload.write(b"0123456789ab")
    upload.write(bytearray(b"cdefghij"))
    upload.write(memoryview(b"k"))
    assert storage.files("ann").items == ()
    file = upload.commit()
    assert storage.file("ann", file.id) == file
    assert (file.filename, file.purpose, file.n_bytes) == ("in.jsonl", "batch", 21)
    assert (file.created_at, file.expires_at) == (START, START + 3600)
    assert [piece.n_bytes for piece in file.pieces] == [10, 10, 1]
    assert content(storage, file) == b"0123456789abcdefghijk"


def test_an_empty_file(storage: SqlStorage) -> None:
    """A file may have no byte."""
    file = storage.add_file("ann", "empty").commit()
    assert (file.n_bytes, content(storage, storage.file("ann", file.id))) == (0, b"")


def test_an_aborted_upload_leaves_nothing(place: Place, storage: SqlStorage) -> None:
    """`abort` removes rows and bytes, and `write` and `commit` are refused afterwards."""
    upload = storage.add_file("ann", "in.jsonl")
    upload.write(b"x" * 25)
    assert len(place.stored()) == 2
    upload.abort()
    assert place.stored() == set()
    assert place.row_counts() == (0, 0)
    with pytest.raises(StorageUnavailable):
        upload.write(b"x")
    with pytest.raises(StorageUnavailable):
        upload.commit()


def test_abort_after_commit_changes_nothing(storage: SqlStorage) -> None:
    """A file stays if its upload is aborted after `commit`."""
    upload = storage.add_file("ann", "in.jsonl")
    upload.write(b"abc")
    file = upload.commit()
    upload.abort()
    assert content(storage, storage.file("ann", file.id)) == b"abc"


def test_every_range(storage: SqlStorage) -> None:
    """`read` gives exactly the bytes of a range, wherever the range begins and ends."""
    data = bytes(range(35))
    file = add_file(storage, data)
    for start, end in itertools.combinations_with_replacement(range(38), 2):
        assert b"".join(storage.read(file, start, end)) == data[start:end], (start, end)
    assert b"".join(storage.read(file, 7)) == data[7:]


def test_chunks_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk is larger than `CHUNK_BYTES`, whatever the size of a piece."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", 4 * CHUNK_BYTES)
    storage = place.storage(max_file_bytes=10**8, key_bytes=10**8)
    file = add_file(storage, b"x" * (2 * CHUNK_BYTES + 5))
    assert [len(chunk) for chunk in storage.read(file)] == [CHUNK_BYTES, CHUNK_BYTES, 5]


def test_an_owner_sees_its_own_only(storage: SqlStorage) -> None:
    """Another owner's id is refused with the same error as an id of nobody."""
    file = add_file(storage)
    for owner, file_id in [("bob", file.id), ("ann", "file-0"), ("ann", "x\0"), ("", file.id)]:
        with pytest.raises(UnknownFile, match=r"^No such File object: "):
            storage.file(owner, file_id)
        with pytest.raises(UnknownFile):
            storage.delete_file(owner, file_id)
        with pytest.raises(UnknownFile) as caught:
            storage.files(owner, after=file_id)
        assert caught.value.param == "after"
    assert storage.files("bob").items == ()
    assert content(storage, storage.file("ann", file.id)) == b"1\n2\n3\n"


def test_pages(storage: SqlStorage) -> None:
    """Pages follow each other in either order, and say whether more follow."""
    ids = [add_file(storage).id for _ in range(5)]
    add_file(storage, owner="bob")
    first = storage.files("ann", limit=2)
    assert ([file.id for file in first.items], first.has_more) == (ids[:2:-1], True)
    second = storage.files("ann", limit=3, after=ids[3])
    assert ([file.id for file in second.items], second.has_more) == (ids[2::-1], False)
    rising = storage.files("ann", limit=2, after=ids[0], order="asc")
    assert ([file.id for file in rising.items], rising.has_more) == (ids[1:3], True)
    assert storage.files("ann", purpose="batch_output").items == ()
    assert len(storage.files("ann", purpose="batch").items) == 5


def test_a_deleted_file_is_gone(place: Place, storage: SqlStorage) -> None:
    """A deleted file leaves neither rows nor bytes, and cannot be deleted again."""
    file = add_file(storage)
    storage.delete_file("ann", file.id)
    assert place.stored() == set()
    assert place.row_counts() == (0, 0)
    with pytest.raises(UnknownFile):
        storage.delete_file("ann", file.id)
    with pytest.raises(UnknownFile):  # a reader that had begun
        content(storage, file)


def test_an_input_that_is_deleted_stays_for_its_batch(place: Place, storage: SqlStorage) -> None:
    """The owner sees a deleted input no more; its batch reads on, and then the bytes go."""
    file = add_file(storage)
    batch = add_batch(storage, file)
    storage.delete_file("ann", file.id)
    with pytest.raises(UnknownFile):
        storage.file("ann", file.id)
    with pytest.raises(UnknownFile):
        add_batch(storage, file)
    storage.sweep()
    claim = claimed(storage)
    assert (claim.batch.id, content(storage, claim.input)) == (batch.id, b"1\n2\n3\n")
    claim.begin(0, None)
    claim.finish("completed")
    storage.sweep()
    assert place.stored() == set()


def test_an_expired_file_is_gone(place: Place, storage: SqlStorage) -> None:
    """A file is seen up to its last second; a sweep then removes its bytes."""
    file = add_file(storage)
    place.clock.advance(30 * DAY_S - 1)
    storage.sweep()
    assert storage.file("ann", file.id).id == file.id
    place.clock.advance(1)
    with pytest.raises(UnknownFile):
        storage.file("ann", file.id)
    assert storage.files("ann").items == ()
    storage.sweep()
    assert place.stored() == set()
    assert place.row_counts() == (0, 0)


def test_a_file_has_a_largest_size(place: Place) -> None:
    """An upload with a byte too many is refused before the byte is stored."""
    storage = place.storage(max_file_bytes=25)
    upload = storage.add_file("ann", "in")
    upload.write(b"x" * 25)
    with pytest.raises(FileTooLarge, match="larger than 25 bytes"):
        upload.write(b"x")
    upload.abort()
    assert place.stored() == set()


def test_bytes_of_an_owner(place: Place) -> None:
    """Uploads of an owner are refused past its bytes, unfinished ones count, others are free."""
    storage = place.storage(key_bytes=40)
    add_file(storage, b"x" * 20)
    growing = storage.add_file("ann", "in")
    growing.write(b"x" * 12)  # ten of which are stored
    other = storage.add_file("ann", "in")
    other.write(b"x" * 10)
    with pytest.raises(StorageQuotaReached, match="Limit 40, Used 40, Requested 2") as caught:
        growing.commit()
    assert caught.value.code == "insufficient_quota"
    assert not caught.value.is_worth_retrying
    with pytest.raises(StorageQuotaReached):
        storage.add_file("ann", "in")
    add_file(storage, b"x" * 40, owner="bob")
    other.abort()
    growing.abort()
    add_file(storage, b"x" * 20)


def test_files_of_an_owner(place: Place) -> None:
    """Files of an owner are refused past their number; a deleted one makes room."""
    storage = place.storage(key_files=2)
    file = add_file(storage)
    storage.add_file("ann", "in")
    with pytest.raises(StorageQuotaReached, match=r"quota of files of API key `ann`: Limit 2"):
        storage.add_file("ann", "in")
    storage.add_file("bob", "in")
    storage.delete_file("ann", file.id)
    storage.add_file("ann", "in")


def test_a_stale_upload_is_swept(place: Place, storage: SqlStorage) -> None:
    """An upload without a byte for an hour is removed; its writer cannot go on with it."""
    upload = storage.add_file("ann", "in")
    upload.write(b"x" * 15)
    place.clock.advance(3599)
    storage.sweep()
    assert len(place.stored()) == 1
    upload.write(b"x" * 10)
    place.clock.advance(3601)
    storage.sweep()
    assert place.stored() == set()
    assert place.row_counts() == (0, 0)
    with pytest.raises(StorageUnavailable):
        upload.commit()


def test_names_of_any_kind(storage: SqlStorage) -> None:
    """A name with signs that a database refuses is kept as far as it can be."""
    file = storage.add_file("ann", "a\0b\ud800.jsonl").commit()
    assert storage.file("ann", file.id).filename == "a\N{REPLACEMENT CHARACTER}b?.jsonl"


def test_lost_bytes(place: Place, storage: SqlStorage) -> None:
    """Bytes that somebody removed or cut are an error that names the object."""
    file = add_file(storage, b"x" * 25)
    blobs = place.make_blobs()
    blobs.put(file.pieces[2].key, b"xx")
    with pytest.raises(StorageDamaged, match=file.pieces[2].key):
        content(storage, file)
    blobs.delete([file.pieces[0].key])
    with pytest.raises(StorageDamaged, match=file.pieces[0].key):
        content(storage, file)
    storage.delete_file("ann", file.id)
    assert place.stored() == set()
