"""The lines of an input file: what a line must say, and what the whole file must be.

A file is read once, in chunks. Nothing here holds more of a file than one line and a hash of each
custom_id.

Source: OpenAI's guide to the Batch API; the codes are those of its `errors` and of Azure's table.
"""

from __future__ import annotations

import array
import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson

from matryo.batch.objects import LineError

MARK = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, which a file may begin with."""

_METHOD = "POST"
_MAX_ERRORS = 100  # of a file; a file of other lines would have one for each
_BESIDE_BODY = 1 << 20  # bytes of a line: its custom_id, and how the body is written
_MAX_ID_CHARS = 512
_SHOWN = 64
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Bounds of an input file; None for no bound.

    Attributes:
        max_lines: requests of a file, and also embedding inputs of a file.
        max_line_bytes: of one line.
    """

    max_lines: int | None = 50_000
    max_line_bytes: int = 16 << 20


def line_limits(max_lines: int | None, max_body_bytes: int) -> LineLimits:
    """Bounds for bodies of so many bytes; what a line has beside its body is short."""
    return LineLimits(max_lines, max_body_bytes + _BESIDE_BODY)


@dataclass(frozen=True, slots=True)
class RawLine:
    """One line of a file.

    Attributes:
        number: of the line in the file, from 1.
        content: without the line's end; None for a line that is longer than the limit.
        n_bytes: with the line's end, and with a byte order mark before.
    """

    number: int
    content: bytes | None
    n_bytes: int

    @property
    def is_blank(self) -> bool:
        """Whether the line has white space only."""
        return self.content is not None and not self.content.strip()


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a file.

    Attributes:
        number: of the line in the file, from 1.
        custom_id: the caller's name of the request.
        body: JSON of the request's body.
    """

    number: int
    custom_id: str
    body: bytes


def split_lines(
    chunks: Iterable[bytes], max_line_bytes: int, n_before: int = 0
) -> Iterator[RawLine]:
    """The lines of a file, in order.

    Args:
        chunks: the bytes of the file, from the beginning of a line on.
        max_line_bytes: the content of a longer line is dropped.
        n_before: lines before the first one.
    """
    number, held, n_dropped = n_before, bytearray(), 0
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            held += chunk[start:end]
            start, number = end, number + 1
            yield _raw_line(number, held, n_dropped, max_line_bytes)
            held, n_dropped = bytearray(), 0
        held += chunk[start:]
        if len(held) > max_line_bytes:
            n_dropped += len(held)
            held.clear()
    if held or n_dropped:
        yield _raw_line(number + 1, held, n_dropped, max_line_bytes)


def _raw_line(number: int, held: bytearray, n_dropped: int, max_line_bytes: int) -> RawLine:
    n_bytes = n_dropped + len(held)
    content = bytes(held).removesuffix(b"\n").removesuffix(b"\r")
    if number == 1:
        content = content.removeprefix(MARK)
    is_long = bool(n_dropped) or len(content) > max_line_bytes
    return RawLine(number, None if is_long else content, n_bytes)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a whole file says.

    Attributes:
        n_lines: requests.
        model: that all requests name; None where none of them names one.
        errors: in the order of lines; empty for a file that can be run.
        sha256: names the bytes of the file, blank lines and line ends included; hex digits.
    """

    n_lines: int
    model: str | None
    errors: tuple[LineError, ...]
    sha256: str


class FileCheck:
    """Holds the lines of a file against the rules, one by one.

    Args:
        endpoint: the path that every line must name.
        limits: of the file.
    """

    def __init__(self, endpoint: str, limits: LineLimits) -> None:
        self._endpoint, self._most = endpoint, limits.max_lines
        self._n_lines = self._n_inputs = 0
        self._model: str | None = None
        self._errors: list[LineError] = []
        self._ids = _Ids()
        self._sha256 = hashlib.sha256()

    def feed(self, line: RawLine) -> bool:
        """Check the next line; False if the errors are enough, and further lines need no check."""
        self._sha256.update(b"%d " % line.n_bytes)
        self._sha256.update(line.content or b"")
        if line.is_blank:
            return True
        self._n_lines += 1
        if self._is_over(self._n_lines, "requests", line):
            return False
        found = read_line(line, self._endpoint)
        if isinstance(found, LineError):
            self._errors.append(found)
            return len(self._errors) < _MAX_ERRORS
        request, model, n_inputs = found
        self._n_inputs += n_inputs
        if self._is_over(self._n_inputs, "embedding inputs", line):
            return False
        self._ids.add(request.custom_id, line.number)
        if len(self._ids) == 1:
            self._model = model
        elif model != self._model:
            self._errors.append(_other_model(line.number, model, self._model))
        return len(self._errors) < _MAX_ERRORS

    def finish(self) -> Checked:
        """The outcome; call this after the last line, or after `feed` returned False."""
        errors = [*self._errors, *map(_duplicate, self._ids.repeated())]
        if not self._n_lines:
            errors = [LineError("empty_file", "The input file has no requests.")]
        errors.sort(key=lambda one: one.line or 0)
        found = tuple(errors[:_MAX_ERRORS])
        return Checked(self._n_lines, self._model, found, self._sha256.hexdigest())

    def _is_over(self, n: int, what: str, line: RawLine) -> bool:
        """Whether the file has too much of something; the file then has an error for the line."""
        if self._most is None or n <= self._most:
            return False
        message = (
            f"The input file has more than {self._most} {what}: line {line.number} is past the "
            "limit. Split the file into several batches."
        )
        self._errors.append(LineError("too_many_tasks", message, line.number))
        return True


def check_lines(lines: Iterable[RawLine], endpoint: str, limits: LineLimits) -> Checked:
    """Hold a whole file against the rules; see `FileCheck`."""
    check = FileCheck(endpoint, limits)
    for line in lines:
        if not check.feed(line):
            break
    return check.finish()


def read_line(line: RawLine, endpoint: str) -> tuple[Line, str | None, int] | LineError:
    """A request, the model it names and its number of embedding inputs; or what is wrong.

    Args:
        line: not blank.
        endpoint: the path that the line must name.
    """
    number = line.number
    if line.content is None:
        message = f"The line has {line.n_bytes} bytes, more than a line may have. Send fewer texts."
        return LineError("invalid_request", message, number, None)
    try:
        data: Any = orjson.loads(line.content)
    except orjson.JSONDecodeError as exc:
        return LineError("invalid_json_line", _not_json(line.content, exc), number, None)
    if not isinstance(data, dict):
        message = "This line is not a JSON object."
        return LineError("invalid_json_line", message, number, None)
    fields = cast("dict[str, Any]", data)
    if error := _fault(fields, endpoint):
        code, message, param = error
        return LineError(code, message, number, param)
    body: dict[str, Any] = fields["body"]
    try:
        content = orjson.dumps(body)
    except orjson.JSONEncodeError:  # which refuses fewer levels than the parser
        message = "The body has arrays or objects in one another, 254 levels deep or more."
        return LineError("invalid_request", message, number, "body")
    model = body.get("model")
    request = Line(number, fields["custom_id"], content)
    return request, model if isinstance(model, str) else None, _n_inputs(body.get("input"))


def _fault(fields: dict[str, Any], endpoint: str) -> tuple[str, str, str] | None:
    """Code, message and field of what is wrong with a line's fields; None if nothing is."""
    for name in ("custom_id", "method", "url", "body"):
        if fields.get(name) is None:
            return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
    custom_id, method, url = fields["custom_id"], fields["method"], fields["url"]
    if not isinstance(custom_id, str):
        return "invalid_request", "Invalid type for 'custom_id': expected a string.", "custom_id"
    if not 0 < len(custom_id) <= _MAX_ID_CHARS:
        message = (
            f"Invalid 'custom_id': a string of {len(custom_id)} characters. Expected 1 to "
            f"{_MAX_ID_CHARS} characters."
        )
        return "invalid_request", message, "custom_id"
    if method != _METHOD:
        message = f"Invalid value for 'method': {_shown(method)}. Supported values are: 'POST'."
        return "invalid_method", message, "method"
    if url != endpoint:
        message = (
            f"The URL provided for this request, {_shown(url)}, does not match the batch endpoint, "
            f"'{endpoint}'. Each batch must contain requests for a single endpoint."
        )
        return "url_mismatch", message, "url"
    if not isinstance(fields["body"], dict):
        return "invalid_request", "Invalid type for 'body': expected an object.", "body"
    return None


def _n_inputs(value: Any) -> int:  # noqa: ANN401 - whatever JSON holds
    """Embedding inputs of a body: texts or arrays of ids; 1 for a text or one array of ids."""
    if not isinstance(value, list):
        return 1
    items = cast("list[Any]", value)
    return len(items) if items and isinstance(items[0], (str, list)) else 1


def _not_json(content: bytes, exc: orjson.JSONDecodeError) -> str:
    message = "This line is not parseable as valid JSON"
    if content.startswith(_OTHER_MARKS) or b"\0" in content[:4]:
        return f"{message}: the file is UTF-16 or UTF-32. Convert the file to UTF-8."
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as fault:
        return f"{message}: byte {fault.start + 1} is not UTF-8."
    return f"{message}: {exc.msg} at character {exc.pos + 1}."


def _other_model(number: int, model: str | None, first: str | None) -> LineError:
    message = (
        f"The model of this request, {_shown(model)}, is not that of the first request, "
        f"{_shown(first)}. Each batch must contain requests for a single model."
    )
    return LineError("model_mismatch", message, number, "body.model")


def _duplicate(number: int) -> LineError:
    message = (
        "The custom_id for this request is a duplicate of that of another request. The custom_id "
        "must be unique for each request in a batch."
    )
    return LineError("duplicate_custom_id", message, number, "custom_id")


def _shown(value: object) -> str:
    """A value of a caller for a message, cut where it is long."""
    if value is None:
        return "which is missing"
    if not isinstance(value, str):
        return "which is no string"
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")


class _Ids:
    """The custom_ids of a file, as 16 bytes each: a keyed hash, and the line."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)  # nobody can make two ids with one hash
        self._hashes, self._lines = array.array("Q"), array.array("Q")

    def __len__(self) -> int:
        """Number of ids."""
        return len(self._lines)

    def add(self, custom_id: str, line: int) -> None:
        """Take the id of the next request."""
        digest = hashlib.blake2b(custom_id.encode(), key=self._key, digest_size=8).digest()
        self._hashes.frombytes(digest)
        self._lines.append(line)

    def repeated(self) -> Sequence[int]:
        """Lines whose id an earlier line has, in order, up to the number that is reported."""
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.empty(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        ranked = hashes[order]
        again = np.sort(order[1:][ranked[1:] == ranked[:-1]])[:_MAX_ERRORS]
        return [self._lines[int(index)] for index in again]
