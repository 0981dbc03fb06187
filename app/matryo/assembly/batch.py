"""Which storage of the Batch API do these settings mean, and can it be used?"""

from __future__ import annotations

import importlib.util

from matryo.batch.storage import Storage, open_storage
from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings


def open_batch(settings: Settings) -> Storage | None:
    """The storage of the Batch API, to be closed by the caller; None if that API is off.

    Raises:
        SettingsInvalid: a package is missing, or the folder, the database or the store cannot be
            used.
    """
    if not settings.batch:
        return None
    if importlib.util.find_spec("python_multipart") is None:  # reads uploads
        raise SettingsInvalid(
            "MATRYO_BATCH is true, but the package python-multipart is not installed. Install it "
            "with: pip install 'matryo[batch]'"
        )
    return open_storage(settings)


def check_batch(settings: Settings) -> None:
    """Refuse a storage that cannot be used, before anything costs.

    Raises:
        SettingsInvalid: as `open_batch`.
    """
    if storage := open_batch(settings):
        storage.close()
