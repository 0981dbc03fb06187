"""A multipart form with one file, read as its bytes come, with no more than a piece in memory.

python-multipart finds the parts; this module bounds and names them. FastAPI's own forms would keep
the whole file, in memory or in a temporary folder, before a route is called.

Source: RFC 7578; RFC 2046, section 5.1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from matryo.core.errors import InvalidRequest
from matryo.http.openai.parsing import missing_parameter

FORM_PARTS = ("purpose", "file", "expires_after[anchor]", "expires_after[seconds]")
"""Names of the parts that are known; each may be there once."""
FORM_BYTES = 64 * 1024
"""Most bytes of a form beside those of its file."""

_MOST_BOUNDARY = 70  # RFC 2046
_MOST_PARTS = 16
_MOST_FIELD_BYTES = 4096
_MOST_NAME = 255
_NO_NAME = "upload"  # what openai-python calls a file that has no name
_SHOWN = 64

# The parser logs a warning for each fault of a caller, which the caller reads in the answer.
_SILENT = logging.getLogger(f"{__name__}.parser")
_SILENT.disabled = True


def boundary_of(content_type: str) -> bytes:
    """The boundary in the Content-Type of a form.

    Raises:
        InvalidRequest: the form has no boundary, or one that is too long.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= _MOST_BOUNDARY:
        raise _unreadable(f"its Content-Type has no boundary of 1 to {_MOST_BOUNDARY} characters")
    return boundary


class FileForm:
    """Reads a form with the file `file` and with short fields.

    Args:
        boundary: between the parts.
        on_file: called with the file's name when the file begins; the fields before the file are
            known by then.
        on_data: called with each piece of the file.

    Attributes:
        fields: the values of the fields that are complete, by name.
    """

    def __init__(
        self, boundary: bytes, on_file: Callable[[str], None], on_data: Callable[[bytes], None]
    ) -> None:
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": self._add_to_name,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._add_content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        self._parser.logger = _SILENT
        self._on_file, self._on_data = on_file, on_data
        self.fields: dict[str, str] = {}
        self._n_parts = self._n_form_bytes = self._n_data_bytes = 0
        self._has_file = self._is_whole = False
        self._name = ""
        self._in_file = False
        self._value = bytearray()
        self._header = bytearray(), bytearray()
        self._disposition = b""

    def feed(self, piece: bytes) -> None:
        """Read a piece of the body.

        Raises:
            InvalidRequest: the bytes are no form, or the form passes a bound.
        """
        before = self._n_data_bytes
        try:
            self._parser.write(piece)
        except FormParserError as exc:
            raise _unreadable(str(exc)) from exc
        self._n_form_bytes += len(piece) - (self._n_data_bytes - before)
        if self._n_form_bytes > FORM_BYTES:
            raise _unreadable(f"it has more than {FORM_BYTES} bytes beside those of its file")

    def finish(self) -> None:
        """Take note that the body has ended.

        Raises:
            InvalidRequest: the form is not complete, or has no file.
        """
        if not self._is_whole:
            raise _unreadable("it ends before the boundary that closes the form")
        if not self._has_file:
            raise missing_parameter("file")

    # --- the parser's callbacks

    def _begin_part(self) -> None:
        self._n_parts += 1
        if self._n_parts > _MOST_PARTS:
            raise _unreadable(f"it has more than {_MOST_PARTS} parts")
        self._disposition = b""
        self._value.clear()

    def _begin_header(self) -> None:
        self._header = bytearray(), bytearray()

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)

    def _begin_content(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _unreadable(
                f"part {self._n_parts} has no header Content-Disposition: form-data; name=..."
            )
        self._name = _text(name)
        is_again = self._name in self.fields or (self._name == "file" and self._has_file)
        if is_again and self._name in FORM_PARTS:
            raise InvalidRequest(
                f"Duplicate parameter: '{self._name}'. Send each part of the form once, and one "
                "file in a request.",
                param=self._name,
                code="duplicate_parameter",
            )
        self._in_file = self._name == "file"
        if self._in_file:
            self._has_file = True
            self._on_file(_filename(options.get(b"filename", b"")))
        elif b"filename" in options:
            raise InvalidRequest(
                f"The part '{self._name[:_SHOWN]}' of the form is a file. Send the file in the "
                "part 'file'.",
                param=self._name[:_SHOWN],
                code="unknown_parameter",
            )

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._n_data_bytes += end - start
            self._on_data(data[start:end])
            return
        self._value.extend(data[start:end])
        if len(self._value) > _MOST_FIELD_BYTES:
            raise InvalidRequest(
                f"Invalid '{self._name[:_SHOWN]}': string too long. Expected a string with maximum "
                f"length {_MOST_FIELD_BYTES}, but got a longer one instead.",
                param=self._name[:_SHOWN],
                code="string_above_max_length",
            )

    def _end_part(self) -> None:
        if not self._in_file:
            self.fields[self._name] = _text(self._value)
        self._in_file = False

    def _end(self) -> None:
        self._is_whole = True


def _unreadable(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"We could not parse the multipart body of your request: {reason}. (HINT: send "
        "multipart/form-data with the part 'purpose', which is batch, and the part 'file'.)"
    )


def _text(value: bytes | bytearray) -> str:
    return value.decode("utf-8", "replace")


def _filename(value: bytes) -> str:
    """The last part of the name of a caller's file, without control characters, cut to 255."""
    name = _text(value).replace("\\", "/").rpartition("/")[2]
    return "".join(filter(str.isprintable, name))[:_MOST_NAME] or _NO_NAME
