"""`matryo pull cl100k_base`: the verified table of the vocabulary in the store.

The table is taken out of llama-index-core's wheel, without that package or any package it
requires.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from matryo.catalog.manifest import CheckpointFile, PypiSource
from matryo.core.errors import CheckpointMismatch
from matryo.core.progress import Reporter
from matryo.store.encodings import ENCODING, PACKAGE_FOLDER, TABLE_BYTES, TABLE_FILE, TABLE_SHA256
from matryo.store.files import (
    make_folder,
    publish_file,
    room_for,
    sha256_file,
    temporary_folder,
    tidy_folder,
)
from matryo.store.layout import Store
from matryo.store.pull.local import Fetch, local_source
from matryo.store.pull.pypi import from_pypi

_SOURCE = PypiSource(
    kind="pypi",
    package="llama-index-core",
    version="0.14.25",
    folder=PACKAGE_FOLDER,
    wheel=CheckpointFile(
        sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1", bytes=11928254
    ),
)


def pull_table(store: Store, origin: str | None, reporter: Reporter) -> Path:
    """Fetch the table into the store, unless it is there; call under the store's lock.

    Args:
        store: the store.
        origin: `pypi` or None, or the path of a folder or of a wheel that holds the file.
        reporter: takes a sentence for each step, and the progress of the long ones.

    Returns:
        The table's path in the store.

    Raises:
        PullFailed: the source does not answer, or lacks the file; says what to do.
        CheckpointMismatch: the file is not cl100k_base.
        StoreFull: the disk has not enough room.
    """
    fetch = _fetcher(origin)
    final = store.encodings / TABLE_FILE
    tidy_folder(store.encodings)
    if not (final.is_file() and sha256_file(final) == TABLE_SHA256):
        with room_for(store.home, _SOURCE.wheel.bytes or 0):
            make_folder(store.encodings)
            with temporary_folder(store.encodings) as aside:
                fetch(aside, {TABLE_FILE: TABLE_BYTES}, reporter)
                found = sha256_file(aside / TABLE_FILE)
                if found != TABLE_SHA256:
                    raise CheckpointMismatch(
                        f"{ENCODING} came with sha256 {found}, but it is known by {TABLE_SHA256}. "
                        "Nothing was kept; try another --from."
                    )
                publish_file(aside / TABLE_FILE, final)
    reporter.say(f"{ENCODING}: complete and verified in {final}")
    return final


def _fetcher(origin: str | None) -> Fetch:
    """The function that brings the table from `origin` into a folder.

    Raises:
        PullFailed: the path is no source of the table.
    """
    if origin in (None, "pypi"):
        return partial(from_pypi, _SOURCE, ENCODING)
    return local_source(origin, _SOURCE.folder, [TABLE_FILE])
