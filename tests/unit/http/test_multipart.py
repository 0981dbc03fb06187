"""Multipart forms with a file: what is read, and what is refused, however the bytes are cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.errors import InvalidRequest
from matryo.http.openai.multipart import FORM_BYTES, FileForm, boundary_of

BOUNDARY = b"b0undary"
PURPOSE = (b'form-data; name="purpose"', b"batch")
FILE = b'form-data; name="file"; filename="in.jsonl"'


def form(*parts: tuple[bytes, bytes], boundary: bytes = BOUNDARY) -> bytes:
    """The body of a form; of each part, its Content-Disposition and its content."""
    body = b""
    for disposition, content in parts:
        body += b"--" + boundary + b"\r\nContent-Disposition: " + disposition
        body += b"\r\n\r\n" + content + b"\r\n"
    return body + b"--" + boundary + b"--\r\n"


def read(
    body: bytes, cuts: Sequence[int] = (), boundary: bytes = BOUNDARY
) -> tuple[str | None, bytes, dict[str, str]]:
    """Name and bytes of the file, and the fields, of a body that comes in pieces."""
    content = bytearray()
    names: list[str] = []
    reader = FileForm(boundary, names.append, content.extend)
    ends = [0, *sorted(cut for cut in cuts if cut <= len(body)), len(body)]
    for start, end in pairwise(ends):
        reader.feed(body[start:end])
    reader.finish()
    return (names[0] if names else None), bytes(content), reader.fields


def outcome(body: bytes, cuts: Sequence[int] = ()) -> object:
    """What is read, or the code and the param of the refusal."""
    try:
        return read(body, cuts)
    except InvalidRequest as exc:
        return exc.code, exc.param


CONTENTS = {
    "nothing": b"",
    "a line": b'{"a": 1}\n',
    "line breaks": b"\r\n\r\n--\r\n\n\r",
    "near boundaries": b"\r\n--b0undar\r\n--b0undarX\r\n--B0undary--\r\n-\r",
    "every byte": bytes(range(256)) * 3,
    "a boundary without a line break": b"x--b0undary--",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_cut(name: str) -> None:
    """The file is whole wherever the body is cut, in two places at once."""
    body = form(PURPOSE, (FILE, CONTENTS[name]))
    expected = ("in.jsonl", CONTENTS[name], {"purpose": "batch"})
    for first in range(0, len(body) + 1, 1 if len(body) < 300 else 7):
        for second in (first, first + 1, first + 9):
            assert read(body, (first, second)) == expected
    assert read(body, range(len(body))) == expected


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"b0undary", b"\r\n--b", b"x", b"\0"])),
    st.lists(st.integers(0, 400)),
    st.booleans(),
)
def test_any_content(pieces: list[bytes], cuts: list[int], file_first: bool) -> None:
    """Any bytes without the whole boundary arrive as they were sent."""
    content = b"".join(pieces).replace(b"\r\n--b0undary", b"")
    if b"\r\n--b0undary" in b"\r\n" + content:
        content = b"x" + content.replace(b"b0undary", b"")
    parts = [(FILE, content), PURPOSE] if file_first else [PURPOSE, (FILE, content)]
    assert read(form(*parts), cuts) == ("in.jsonl", content, {"purpose": "batch"})


@given(st.data())
def test_damaged_forms(data: st.DataObject) -> None:
    """A damaged form is read or refused, with the same outcome wherever the body is cut."""
    body = bytearray(form(PURPOSE, (FILE, b'{"a": 1}\r\n-\n'), (b'form-data; name="x"', b"y")))
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(body)))
        n_out = data.draw(st.integers(0, 12))
        body[start : start + n_out] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"\r\n", b"--b0undary", b"\r\n--b0undary--"])
        )
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=6))
    assert outcome(bytes(body), cuts) == outcome(bytes(body))


FAULTS = {
    "nothing": (b"", None, None),
    "no form": (b'{"purpose": "batch"}', None, None),
    "another boundary": (form(PURPOSE, (FILE, b"a"), boundary=b"other"), None, None),
    "cut in the file": (form(PURPOSE, (FILE, b"abc"))[:-20], None, None),
    "cut before the last boundary": (form(PURPOSE, (FILE, b"abc"))[:-14], None, None),
    "cut after the file": (form(PURPOSE, (FILE, b"a")).replace(b"y--\r\n", b"y\r\n"), None, None),
    "no file": (form(PURPOSE), "missing_required_parameter", "file"),
    "no part": (b"--b0undary--\r\n", "missing_required_parameter", "file"),
    "two files": (form((FILE, b"a"), PURPOSE, (FILE, b"b")), "duplicate_parameter", "file"),
    "two purposes": (form(PURPOSE, PURPOSE, (FILE, b"b")), "duplicate_parameter", "purpose"),
    "a file of another name": (
        form(PURPOSE, (b'form-data; name="upload"; filename="a"', b"x")), "unknown_parameter", "upload",
    ),
    "a part without a name": (form(PURPOSE, (b"form-data", b"x")), None, None),
    "a part of another kind": (form((b'attachment; name="file"', b"x")), None, None),
    "a part without headers": (b"--b0undary\r\n\r\nx\r\n--b0undary--", None, None),
    "a header without a value": (b"--b0undary\r\nX\r\n\r\nx\r\n--b0undary--", None, None),
    "a huge header": (
        b"--b0undary\r\nX: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--b0undary--", None, None,
    ),
    "a thousand headers": (
        b"--b0undary\r\n" + b"X: y\r\n" * 1000 + b"\r\nx\r\n--b0undary--", None, None,
    ),
    "a thousand parts": (
        form(*[(b'form-data; name="f%d"' % n, b"x") for n in range(1000)]), None, None,
    ),
    "a huge field": (
        form((b'form-data; name="purpose"', b"x" * 5000)), "string_above_max_length", "purpose",
    ),
    "a preamble": (b"hello\r\n" + form(PURPOSE, (FILE, b"a")), None, None),
    "much behind the form": (form(PURPOSE, (FILE, b"a")) + b"x" * FORM_BYTES, None, None),
    "much before the form": (b"\r\n" * FORM_BYTES + form(PURPOSE, (FILE, b"a")), None, None),
}  # fmt: skip


@pytest.mark.parametrize("step", [1 << 20, 100, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_refused(name: str, step: int) -> None:
    """A form that cannot be read, or that passes a bound, is refused with OpenAI's fields."""
    body, code, param = FAULTS[name]
    assert outcome(body, range(0, len(body), step)) == (code, param)


def test_messages_are_short(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal quotes little of what the caller sent, and the parser logs nothing."""
    long = b"n" * 4000
    bodies = [form((b'form-data; name="' + long + b'"; filename="a"', b"x"))]
    bodies += [form((b'form-data; name="' + long + b'"', b"x" * 5000)), b"--b0undary\r\n\xff\xfe"]
    for body in bodies:
        with pytest.raises(InvalidRequest) as caught:
            read(body)
        assert len(caught.value.message) < 400
    assert not caplog.records


NAMES = {
    b'filename="in.jsonl"': "in.jsonl",
    b"filename=in.jsonl": "in.jsonl",
    'filename="wörter 語.jsonl"'.encode(): "wörter 語.jsonl",
    b'filename="../../etc/passwd"': "passwd",
    rb'filename="C:\temp\in.jsonl"': "in.jsonl",
    b'filename="a\x00b\x1bc"': "abc",
    b'filename=""': "upload",
    b'filename="\xff"': "\N{REPLACEMENT CHARACTER}",
    b"": "upload",
    b'filename="' + b"a" * 1000 + b'"': "a" * 255,
}


@pytest.mark.parametrize("given", NAMES, ids=repr)
def test_names(given: bytes) -> None:
    """A file is called as its caller calls the file, without folders and control characters."""
    name, *_ = read(form(PURPOSE, (b'form-data; name="file"; ' + given, b"x")))
    assert name == NAMES[given]


def test_boundaries() -> None:
    """A boundary may be quoted; a form needs one of 1 to 70 characters."""
    assert boundary_of("multipart/form-data; boundary=abc") == b"abc"
    assert boundary_of('Multipart/Form-Data; Charset=utf-8; BOUNDARY="a b"') == b"a b"
    for wrong in ("", "; boundary=", '; boundary=""', f"; boundary={'x' * 71}"):
        with pytest.raises(InvalidRequest):
            boundary_of(f"multipart/form-data{wrong}")


def test_memory() -> None:
    """The pieces of a file are handed on as they come, and none is kept."""
    sizes: list[int] = []
    reader = FileForm(BOUNDARY, lambda _: None, lambda data: sizes.append(len(data)))
    reader.feed(form(PURPOSE, (FILE, b""))[:-16])
    for _ in range(100):
        reader.feed(b"x" * 1000)
    assert max(sizes) <= 1000
    assert sum(sizes) == 100_000
