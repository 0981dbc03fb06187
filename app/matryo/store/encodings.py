"""The table of cl100k_base, OpenAI's vocabulary: found on this machine, or fetched.

tiktoken's own file, of base64 pieces and ranks, known by its hash. Packages carry copies
(llama-index-core, LiteLLM), tiktoken keeps one in its cache; `matryo pull cl100k_base` takes
that of llama-index-core's wheel out of the package index, without the packages it asks for.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from matryo.catalog.manifest import CheckpointFile, PypiSource
from matryo.core.errors import CheckpointMismatch, PullFailed
from matryo.core.progress import Progress
from matryo.store.files import TEMPORARY, remove_tree, room_for, sha256_file
from matryo.store.layout import Store

log = logging.getLogger(__name__)

ENCODING = "cl100k_base"
TABLE_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""tiktoken's name for it, the SHA-1 of its address: its folder may be a TIKTOKEN_CACHE_DIR."""

# tiktoken_ext/openai_public.py, `expected_hash` of cl100k_base.
_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_SOURCE = PypiSource(
    kind="pypi",
    package="llama-index-core",
    version="0.14.25",
    folder="llama_index/core/_static/tiktoken_cache",
    wheel=CheckpointFile(
        sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1", bytes=11928254
    ),
)
_IN_PACKAGES = (_SOURCE.folder, "litellm/litellm_core_utils/tokenizers")


def find_table(store: Store) -> Path | None:
    """The table on this machine: the store, installed packages, tiktoken's cache."""
    for path in _candidates(store):
        if not path.is_file():
            continue
        if sha256_file(path) == _SHA256:
            return path
        log.warning("%s is not the cl100k_base it should be by its sha256; passed over", path)
    return None


def _candidates(store: Store) -> Iterator[Path]:
    yield store.encodings / TABLE_FILE
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if folder := os.environ.get(variable):
            yield Path(folder) / TABLE_FILE
    yield Path(tempfile.gettempdir()) / "data-gym-cache" / TABLE_FILE
    for base in sys.path:
        for folder in _IN_PACKAGES:
            yield Path(base) / folder / TABLE_FILE


def pull_table(
    store: Store, origin: str | None, *, progress: Progress, report: Callable[[str], None]
) -> Path:
    """Fetch the table into the store, unless it is there; call under the store's lock.

    Args:
        store: where it goes.
        origin: `pypi` or None, or the path of a folder or of a wheel that holds the file.
        progress: shows the long steps.
        report: takes one sentence for each step worth telling.

    Raises:
        PullFailed: unreachable, or not there; says what to do.
        CheckpointMismatch: the file is not cl100k_base.
        StoreFull: not enough room on the disk.
    """
    # Imported here: the server finds the table and fetches nothing.
    from matryo.store.pull.checkpoint import from_folder, from_pypi, from_wheel

    final = store.encodings / TABLE_FILE
    if not (final.is_file() and sha256_file(final) == _SHA256):
        aside = store.encodings / f"new{TEMPORARY}-{os.getpid()}"
        with room_for(store.home, _SOURCE.wheel.bytes or 0):
            aside.mkdir(parents=True, exist_ok=True)
            try:
                if origin in (None, "pypi"):
                    from_pypi(_SOURCE, aside, [TABLE_FILE], progress, report)
                elif (path := Path(origin).expanduser()).is_dir():
                    from_folder(path, aside, [TABLE_FILE], progress, report)
                elif path.is_file():
                    from_wheel(path, _SOURCE.folder, aside, [TABLE_FILE], progress, report)
                else:
                    raise PullFailed(
                        f"--from {origin}: neither pypi, nor a folder or wheel on this machine"
                    )
                found = sha256_file(aside / TABLE_FILE)
                if found != _SHA256:
                    raise CheckpointMismatch(
                        f"{ENCODING} came with sha256 {found}, but it is known by {_SHA256}. "
                        "Nothing was kept; try another --from."
                    )
                (aside / TABLE_FILE).replace(final)
            finally:
                remove_tree(aside)
    report(f"{ENCODING}: complete and verified in {final}")
    return final
