"""An upload between its form and the storage: who takes turns, and what is checked when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from matryo.core.errors import InvalidRequest
from matryo.http.openai.uploads import Receiving
from tests.batch_storage import NOW, MemoryStorage
from tests.unit.http.test_multipart import BOUNDARY, FILE, PURPOSE, form


def on_thread(work: Callable[[], object]) -> threading.Thread:
    """A thread, as the server has for the storage, that has begun."""
    thread = threading.Thread(target=work, name="matryo-files-test")
    thread.start()
    return thread


def done(work: Callable[[], object]) -> object:
    """What a call on such a thread gives, or raises."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except InvalidRequest as exc:
            outcome.append(exc)

    on_thread(run).join(10)
    (found,) = outcome
    if isinstance(found, InvalidRequest):
        raise found
    return found


def test_an_abort_waits_for_the_write() -> None:
    """An upload is removed once the thread that writes is done, and never beside that thread."""
    storage = MemoryStorage()
    storage.gate.clear()
    receiving = Receiving(storage.as_storage(), "", BOUNDARY)
    writer = on_thread(lambda: receiving.take(form(PURPOSE, (FILE, b"x"))))
    assert storage.writing.wait(10)
    aborter = on_thread(receiving.abort)
    aborter.join(0.2)
    assert aborter.is_alive()
    storage.gate.set()
    for thread in (writer, aborter):
        thread.join(10)
    assert storage.n_aborted == 1


def test_an_abort_keeps_the_file() -> None:
    """Once the file is there, an abort does nothing; without a file there is nothing to abort."""
    storage = MemoryStorage()
    receiving = Receiving(storage.as_storage(), "a", BOUNDARY)
    done(receiving.abort)
    done(lambda: receiving.take(form(PURPOSE, (FILE, b"x"))))
    done(receiving.finish)
    done(receiving.abort)
    ((file, content),) = storage.kept.values()
    assert (file.owner, content, storage.n_aborted) == ("a", b"x", 0)


LIFE = b'form-data; name="expires_after[%s]"'
FORMS = {
    "another purpose": ([(PURPOSE[0], b"fine-tune"), (FILE, b"x")], "purpose", "invalid_value", 0),
    "another purpose, late": (
        [(FILE, b"x"), (PURPOSE[0], b"vision")], "purpose", "invalid_value", 1,
    ),
    "no purpose": ([(FILE, b"x")], "purpose", "missing_required_parameter", 1),
    "no seconds": (
        [PURPOSE, (LIFE % b"anchor", b"created_at"), (FILE, b"x")],
        "expires_after.seconds", "missing_required_parameter", 1,
    ),
    "no anchor": (
        [PURPOSE, (FILE, b"x"), (LIFE % b"seconds", b"3600")],
        "expires_after.anchor", "missing_required_parameter", 1,
    ),
    "another anchor": (
        [PURPOSE, (FILE, b"x"), (LIFE % b"seconds", b"3600"), (LIFE % b"anchor", b"now")],
        "expires_after.anchor", "invalid_value", 1,
    ),
    "too short a life": (
        [PURPOSE, (FILE, b"x"), (LIFE % b"seconds", b"3599"), (LIFE % b"anchor", b"created_at")],
        "expires_after.seconds", "integer_below_min_value", 1,
    ),
    "too long a life": (
        [PURPOSE, (FILE, b"x"), (LIFE % b"seconds", b"2592001"), (LIFE % b"anchor", b"created_at")],
        "expires_after.seconds", "integer_above_max_value", 1,
    ),
    "no number": (
        [PURPOSE, (FILE, b"x"), (LIFE % b"seconds", b"1e4"), (LIFE % b"anchor", b"created_at")],
        "expires_after.seconds", "invalid_type", 1,
    ),
    "a life of JSON": (
        [PURPOSE, (b'form-data; name="expires_after"', b'{"seconds": 3600}'), (FILE, b"x")],
        "expires_after", "invalid_type", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_wrong_fields(name: str) -> None:
    """A wrong field is named, and no file is left; a wrong purpose before the file costs none."""
    parts, param, code, n_uploads = FORMS[name]
    storage = MemoryStorage()
    receiving = Receiving(storage.as_storage(), "", BOUNDARY)

    def send() -> None:
        receiving.take(form(*parts))
        receiving.finish()

    with pytest.raises(InvalidRequest) as caught:
        done(send)
    done(receiving.abort)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert (len(storage.uploads), storage.n_aborted) == (n_uploads, n_uploads)
    assert not storage.kept


def test_a_life() -> None:
    """The seconds of the form are the file's life, wherever they stand."""
    life = [(LIFE % b"seconds", b" 7200 "), (LIFE % b"anchor", b"created_at")]
    for parts in ([PURPOSE, *life, (FILE, b"x")], [(FILE, b"x"), PURPOSE, *life]):
        storage = MemoryStorage()
        receiving = Receiving(storage.as_storage(), "", BOUNDARY)
        done(partial(receiving.take, form(*parts)))
        done(receiving.finish)
        ((file, _),) = storage.kept.values()
        assert file.expires_at == NOW + 7200
