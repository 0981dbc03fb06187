"""An upload on its way from a form to the storage; every call blocks, and is for a thread."""

from __future__ import annotations

import threading

from matryo.batch.objects import File
from matryo.batch.storage import Storage
from matryo.batch.uploads import Upload
from matryo.http.openai.batch_parsing import check_purpose, life_of
from matryo.http.openai.multipart import FileForm
from matryo.http.openai.parsing import missing_parameter


class Receiving:
    """Takes the pieces of a form, and hands the bytes of its file to the storage as they come.

    Args:
        storage: of files.
        owner: name of the caller's key; empty if the server has no keys.
        boundary: of the form.
    """

    def __init__(self, storage: Storage, owner: str, boundary: bytes) -> None:
        self._storage, self._owner = storage, owner
        self._form = FileForm(boundary, self._begin, self._write)
        self._upload: Upload | None = None
        # A caller may be gone while a thread still writes.
        self._turn = threading.Lock()

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the form so far."""
        return self._form.fields

    def take(self, piece: bytes) -> None:
        """Take a piece of the body.

        Raises:
            MatryoError: what `FileForm.feed`, `Storage.add_file` and `Upload.write` raise.
        """
        with self._turn:
            self._form.feed(piece)

    def finish(self) -> File:
        """The file, once the body has ended.

        Raises:
            InvalidRequest: the form lacks something, or has a wrong purpose.
            MatryoError: what `Upload.commit` raises.
        """
        with self._turn:
            self._form.finish()
            if "purpose" not in self.fields:
                raise missing_parameter("purpose")
            check_purpose(self.fields["purpose"])
            assert self._upload
            # Some clients send the file before the fields.
            self._upload.expires_after_s = life_of(self.fields)
            return self._upload.commit()

    def abort(self) -> None:
        """Remove what was written, unless the file is there."""
        with self._turn:
            if self._upload:
                self._upload.abort()

    def _begin(self, filename: str) -> None:
        # A wrong field before the file is found out before the file is read.
        if (purpose := self.fields.get("purpose")) is not None:
            check_purpose(purpose)
        self._upload = self._storage.add_file(self._owner, filename)

    def _write(self, data: bytes) -> None:
        assert self._upload
        self._upload.write(data)
