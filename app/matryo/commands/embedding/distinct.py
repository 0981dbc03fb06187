"""Equal texts of a whole input, computed once: hashes and vectors in a file, not in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from matryo.commands.sinks.block import Span
from matryo.commands.sources.item import Item
from matryo.commands.sources.rows import NOTHING
from matryo.core.errors import SettingsInvalid
from matryo.engine.postprocess import FloatArray

if TYPE_CHECKING:
    from sqlite3 import Connection

_HASH_BYTES = 16
_CACHE_KIB = 32 << 10  # of pages of the file
_TABLES = """
    CREATE TABLE IF NOT EXISTS texts (
        number INTEGER PRIMARY KEY, hash BLOB UNIQUE, vectors BLOB, spans BLOB
    )
"""

Remembered = tuple[FloatArray, list[Span]]
"""The vectors of a text `(n, D)`, and the span of each."""


class Distinct:
    """The texts of one input, each with its vectors.

    A text is looked up when it is read, and remembered when its vectors are there. Texts leave in
    the order in which they came: the vectors of the first of equal texts are there when the second
    needs them.

    Attributes:
        n_texts: that are remembered.
    """

    def __init__(self, connection: Connection, dimensions: int, n_texts: int) -> None:
        self._connection = connection
        self._dimensions = dimensions
        self._on_the_way: set[bytes] = set()
        self.n_texts = n_texts

    def is_new(self, digest: bytes) -> bool:
        """Whether a text has to be computed. The caller then remembers its vectors."""
        if digest in self._on_the_way:
            return False
        query = "SELECT 1 FROM texts WHERE hash = ?"
        if self._connection.execute(query, (digest,)).fetchone():
            return False
        self._on_the_way.add(digest)
        return True

    def remember(self, digest: bytes, vectors: FloatArray, spans: Sequence[Span]) -> None:
        """Keep the vectors of a new text."""
        places = np.array([(span.start, span.end) for span in spans], "<i8")
        row = (self.n_texts, digest, vectors.astype("<f4").tobytes(), places.tobytes())
        self._connection.execute("INSERT INTO texts VALUES (?, ?, ?, ?)", row)
        self._on_the_way.discard(digest)
        self.n_texts += 1

    def recall(self, digest: bytes) -> Remembered:
        """The vectors of a text that is not new."""
        query = "SELECT vectors, spans FROM texts WHERE hash = ?"
        vectors, places = self._connection.execute(query, (digest,)).fetchone()
        matrix = np.frombuffer(vectors, "<f4").reshape(-1, self._dimensions)
        ends: list[list[int]] = np.frombuffer(places, "<i8").reshape(-1, 2).tolist()
        return matrix, [Span(number, start, end) for number, (start, end) in enumerate(ends)]

    def commit(self) -> None:
        """Have the disk hold every text so far."""
        self._connection.commit()


def digest_of(item: Item) -> bytes:
    """A hash of what shapes the vectors of an item."""
    text = item.text.encode("utf-8", "surrogatepass")
    asked = b"" if item.asked is NOTHING else repr(item.asked).encode()
    return hashlib.blake2b(asked + b"\0" + text, digest_size=_HASH_BYTES).digest()


@contextmanager
def open_distinct(
    path: Path | None, dimensions: int, n_texts: int
) -> Generator[Distinct, None, None]:
    """The texts that are remembered in a file.

    Args:
        path: the file; None for a temporary one.
        dimensions: of the vectors.
        n_texts: of an earlier run; later ones in the file are forgotten.

    Raises:
        SettingsInvalid: this Python lacks SQLite, the disk is full, or the file has fewer texts.
    """
    try:
        import sqlite3
    except ImportError as exc:
        raise SettingsInvalid(
            "--dedupe needs Python's sqlite3, which this program lacks; use the command matryo of "
            "an installation"
        ) from exc
    try:
        # SQLite keeps the database of an empty name in a temporary file of its own.
        with closing(sqlite3.connect(path or "")) as connection:
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute("PRAGMA journal_mode = WAL" if path else "PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = FULL" if path else "PRAGMA synchronous = OFF")
            connection.execute(_TABLES)
            connection.execute("DELETE FROM texts WHERE number >= ?", (n_texts,))
            (found,) = connection.execute("SELECT count(*) FROM texts").fetchone()
            if found < n_texts:
                raise SettingsInvalid(
                    f"--resume: {path} has {found} texts, and {n_texts} were remembered. Leave "
                    "--resume out to begin anew"
                )
            yield Distinct(connection, dimensions, n_texts)
    except sqlite3.Error as exc:
        raise SettingsInvalid(f"--dedupe: {path or 'the temporary file'}: {exc}") from exc
