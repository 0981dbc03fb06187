"""The table of cl100k_base, OpenAI's vocabulary, wherever it lies on this machine.

The table is tiktoken's own file of base64 pieces and ranks; its sha256 identifies it.
Packages carry copies (llama-index-core, LiteLLM), tiktoken keeps one in its cache, and
`matryo pull cl100k_base` puts one into the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from matryo.store.files import sha256_file
from matryo.store.layout import Store

log = logging.getLogger(__name__)

ENCODING = "cl100k_base"
TABLE_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""The table's name in tiktoken's cache, so that its folder may be a TIKTOKEN_CACHE_DIR."""

# tiktoken_ext/openai_public.py, `expected_hash` of cl100k_base.
TABLE_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

TABLE_BYTES = 1_681_126
"""The table's size."""

PACKAGE_FOLDER = "llama_index/core/_static/tiktoken_cache"
"""Folder of the table in the package llama-index-core."""

_IN_PACKAGES = (PACKAGE_FOLDER, "litellm/litellm_core_utils/tokenizers")


def find_table(store: Store) -> Path | None:
    """Path of the table in the store, tiktoken's cache or a package; None if there is none."""
    for path in _candidates(store):
        try:
            if not path.is_file():
                continue
            if sha256_file(path) == TABLE_SHA256:
                return path
        except OSError as exc:
            log.warning("%s is not used: %s", path, exc.strerror)
            continue
        log.warning("%s is not used: its sha256 is not that of cl100k_base", path)
    return None


def _candidates(store: Store) -> Iterator[Path]:
    yield store.encodings / TABLE_FILE
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if folder := os.environ.get(variable):
            yield Path(folder) / TABLE_FILE
    with contextlib.suppress(FileNotFoundError):  # a machine without a temporary folder
        yield Path(tempfile.gettempdir()) / "data-gym-cache" / TABLE_FILE
    for base in sys.path:
        for folder in _IN_PACKAGES:
            yield Path(base) / folder / TABLE_FILE
