"""Files behind URLs: `s3://`, `gs://`, `az://`, `https://` and what else fsspec knows.

Object stores are read and written by obstore, which the Batch API uses as well.
"""

from __future__ import annotations

import io
import os
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from matryo.core.errors import InvalidRequest, SettingsInvalid
from matryo.store.files import PART

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
_READ_ONLY = ("http", "https")
_BUFFER_BYTES = 1 << 20
_REMEDY = "install it with: pip install 'matryo[files]'"


def is_url(name: str) -> bool:
    """Whether a name is a URL, and not the path of a file of this machine."""
    return "://" in name and not name.lower().startswith("file://")


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


class Remote:
    """One file or folder behind a URL.

    Args:
        url: the URL.

    Raises:
        SettingsInvalid: a package for this kind of URL is not installed, or there is no such kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme = _scheme(url)
        options: dict[str, Any] = {}
        try:
            import fsspec

            if scheme in _OBJECT_STORES:
                # Imported by name, because obstore is optional, and its types are not needed.
                import_module("obstore.fsspec").register(scheme)
                if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
                    options["client_options"] = {"allow_http": True}
            self._files: Any = fsspec.filesystem(scheme, **options)
        except ImportError as exc:
            raise SettingsInvalid(f"{url}: {exc.name or exc} is missing; {_REMEDY}") from exc
        except ValueError as exc:
            raise SettingsInvalid(f"{url}: {exc}; give a path, or a URL such as s3://") from exc

    @property
    def is_listable(self) -> bool:
        """Whether the URL may name a folder or a glob."""
        return _scheme(self.url) not in _READ_ONLY

    def matches(self) -> list[str]:
        """The URLs of the files of a folder or of a glob, sorted; of a file, its own.

        Raises:
            InvalidRequest: there is no such file or folder, or the store refuses.
        """
        if not self.is_listable:
            return [self.url]
        try:
            if any(mark in self.url for mark in "*?["):
                found = self._files.glob(self.url)
            elif self._files.isdir(self.url):
                found = self._files.find(self.url)
            else:
                return [self.url]
        except Exception as exc:
            raise InvalidRequest(f"{self.url}: cannot be listed: {_reason(exc)}") from exc
        scheme = _scheme(self.url)
        return sorted(path if "://" in path else f"{scheme}://{path}" for path in found)

    def version(self) -> str:
        """What the store says of the file's content: its size, and its tag or its time.

        Raises:
            InvalidRequest: there is no such file, or the store refuses.
        """
        try:
            info: dict[str, Any] = self._files.info(self.url)
        except Exception as exc:
            raise InvalidRequest(f"{self.url}: cannot be read: {_reason(exc)}") from exc
        tags = ("e_tag", "ETag", "etag", "last_modified", "LastModified", "mtime")
        tag = next((info[name] for name in tags if info.get(name)), "")
        return f"{info.get('size')} {tag}"

    def open(self) -> BinaryIO:
        """The file's bytes, with `seek`.

        Raises:
            InvalidRequest: there is no such file, or the store refuses.
        """
        self.version()
        try:
            opened = self._files.open(self.url, "rb")
        except Exception as exc:
            raise InvalidRequest(f"{self.url}: cannot be read: {_reason(exc)}") from exc
        return io.BufferedReader(_Raw(opened), _BUFFER_BYTES)

    def check_writable(self) -> None:
        """Write and remove an empty file beside the URL, before any work is done.

        Raises:
            SettingsInvalid: the store refuses, or takes no files.
        """
        if not self.is_listable:
            raise SettingsInvalid(
                f"--output {self.url}: a web server takes no files; give a path, or a URL such as "
                "s3://bucket/name"
            )
        probe = self.url + PART
        try:
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)
        except Exception as exc:
            raise SettingsInvalid(
                f"--output {self.url}: cannot be written: {_reason(exc)}"
            ) from exc

    def upload(self, path: Path) -> None:
        """Copy a file of this machine to the URL; readers see the old file or the new one.

        Raises:
            SettingsInvalid: the store refuses.
        """
        try:
            self._files.put_file(str(path), self.url)
        except Exception as exc:
            raise SettingsInvalid(
                f"--output {self.url}: cannot be written: {_reason(exc)}. The vectors are in {path}"
            ) from exc


class _Raw(io.RawIOBase):
    """A remote file whose errors are all `OSError`."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - libraries' own classes
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(buffer)
        try:
            read = bytes(self._file.read(len(view)))
        except Exception as exc:
            raise OSError(_reason(exc)) from exc
        view[: len(read)] = read
        return len(read)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return int(self._file.seek(offset, whence))
        except Exception as exc:
            raise OSError(_reason(exc)) from exc

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _reason(exc: Exception) -> str:
    """The first line of an error, without what libraries print of themselves."""
    text = str(exc).strip() or type(exc).__name__
    if isinstance(exc, FileNotFoundError):
        return "no such file"
    return text.splitlines()[0][:300]
