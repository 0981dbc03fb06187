"""Which storage of the Batch API do these settings mean, and can it be used?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matryo.core.errors import SettingsInvalid
from matryo.core.settings import Settings

if TYPE_CHECKING:
    from matryo.batch.storage import Storage


def open_batch(settings: Settings) -> Storage | None:
    """The storage of the Batch API, to be closed by the caller; None if that API is off.

    Raises:
        SettingsInvalid: a package is missing, or the folder, the database or the store cannot be
            used.
    """
    if not settings.batch:
        return None
    try:
        import python_multipart  # noqa: F401 - reads uploads
        import sqlalchemy  # noqa: F401 - reads and writes the database
    except ImportError as exc:
        raise SettingsInvalid(
            f"MATRYO_BATCH is true, but the package {exc.name} is missing. Install it with pip "
            "install 'matryo[batch]', or set MATRYO_BATCH=false."
        ) from exc
    # Only a server with a Batch API loads the libraries of its storage.
    from matryo.batch.storage import open_storage

    return open_storage(settings)


def check_batch(settings: Settings) -> None:
    """Refuse a storage that cannot be used, before anything costs.

    Raises:
        SettingsInvalid: as `open_batch`.
    """
    if storage := open_batch(settings):
        storage.close()
