"""Bytes in a bucket of S3, or of a store that speaks S3's protocol.

AWS's own variables hold credentials, region and endpoint; without them, the machine's role counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from matryo.batch.blobs import BlobMissing
from matryo.core.errors import SettingsInvalid, StorageFull, StorageUnavailable

if TYPE_CHECKING:
    from obstore.store import S3CredentialProvider

log = logging.getLogger("matryo")

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PATIENCE_S = 20  # within the lease of a batch
_TIMEOUT_S = 30
_LIST = 1000  # names that S3 sends at once
_FULL_STATUS = "507 Insufficient Storage"  # MinIO and Ceph, when their disks are full


class S3Blobs:
    """Objects of a bucket.

    Args:
        url: `s3://bucket/prefix`.
        patience_s: seconds for which a request is tried again.

    Raises:
        SettingsInvalid: a variable of AWS cannot be used.
    """

    def __init__(self, url: str, patience_s: float = _PATIENCE_S) -> None:
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        try:
            self._store = S3Store.from_url(
                url.rstrip("/"),
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "timeout": timedelta(seconds=_TIMEOUT_S),
                },
                retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=patience_s)},
                credential_provider=_profile() if os.environ.get("AWS_PROFILE") else None,
            )
        except (BaseError, ValueError) as exc:
            raise SettingsInvalid(
                f"MATRYO_BATCH_STORE is {url}, which cannot be used: {_short(exc)}. Check the "
                "bucket's name and AWS's variables."
            ) from exc

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""
        with _translated():
            # One request is one object. Parts of an upload that a crash leaves would cost money.
            obstore.put(self._store, key, data, use_multipart=False)

    def get(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` up to `end`."""
        if start == end:
            return b""
        with _translated():
            try:
                data = bytes(obstore.get_range(self._store, key, start=start, end=end))
            except FileNotFoundError:
                raise BlobMissing(key) from None
            except BaseError:  # a range past the end has no error of its own
                found = self.size(key)
                if found is None or found < end:
                    raise BlobMissing(key) from None
                raise
        if len(data) != end - start:
            raise BlobMissing(key)
        return data

    def size(self, key: str) -> int | None:
        """Number of bytes of an object; None if there is none."""
        with _translated():
            try:
                return obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                return None

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects."""
        names = list(keys)
        with _translated():
            if names:
                obstore.delete(self._store, names)

    def keys(self) -> Iterator[str]:
        """Names of all objects."""
        with _translated():
            for some in obstore.list(self._store, chunk_size=_LIST):
                yield from (one["path"] for one in some)

    def tidy(self) -> None:
        """Nothing: S3 shows no object before the object is whole."""


def _profile() -> S3CredentialProvider:
    """The credentials of AWS_PROFILE, which boto3 reads from AWS's files."""
    if importlib.util.find_spec("boto3") is None:
        raise SettingsInvalid(
            "AWS_PROFILE is set, but the package boto3, which reads profiles, is not installed. "
            "Install it with: pip install boto3"
        )
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except (BotoCoreError, ValueError) as exc:
        raise SettingsInvalid(
            f"AWS_PROFILE cannot be used: {exc}. Check AWS's files of profiles and credentials."
        ) from exc


def _short(exc: Exception) -> str:
    """The first line of an error; the rest is how obstore shows its inner state."""
    return (str(exc).splitlines() or [type(exc).__name__])[0].strip()


@contextlib.contextmanager
def _translated() -> Generator[None, None, None]:
    """Turn errors of the store into those of the storage."""
    try:
        yield
    except (BaseError, OSError) as exc:
        log.warning("batch store: %s", _short(exc))
        raise (StorageFull() if _FULL_STATUS in str(exc) else StorageUnavailable()) from exc
