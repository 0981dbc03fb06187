"""The lines of an input file: every rule, with OpenAI's codes and the number of the line."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryo.batch.lines import (
    Checked,
    LineLimits,
    RawLine,
    check_lines,
    read_line,
    split_lines,
)
from matryo.batch.objects import LineError
from matryo.batch.windows import WindowLimits, read_windows
from matryo.core.errors import InvalidRequest

ENDPOINT = "/v1/embeddings"


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    """A line of a file; a field that is `...` is left out."""
    fields = {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": {"model": "m", "input": "text"},
    } | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def checked(content: bytes, step: int = 1 << 20, **limits: Any) -> Checked:
    """What the check says of a file that comes in chunks of `step` bytes."""
    bounds = LineLimits(**limits)
    chunks = [content[at : at + step] for at in range(0, len(content), step)]
    return check_lines(split_lines(chunks, bounds.max_line_bytes), ENDPOINT, bounds)


def faults(content: bytes, **limits: Any) -> list[tuple[str, int | None, str | None]]:
    """Code, line and field of each error."""
    return [(one.code, one.line, one.param) for one in checked(content, **limits).errors]


def test_a_good_file() -> None:
    """A file of good lines has a number of requests, one model, and no errors."""
    found = checked(b"\n".join(line(f"r{n}") for n in range(3)))
    assert (found.n_lines, found.model, found.errors) == (3, "m", ())


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'"a"', "invalid_json_line", None),
        (b"NaN", "invalid_json_line", None),
        (b"\xff\xfe{\x00", "invalid_json_line", None),
        (line("\u00e9").decode("unicode_escape").encode("latin-1"), "invalid_json_line", None),
        (line(...), "missing_required_parameter", "custom_id"),
        (line(None), "missing_required_parameter", "custom_id"),
        (line(method=...), "missing_required_parameter", "method"),
        (line(url=...), "missing_required_parameter", "url"),
        (line(body=...), "missing_required_parameter", "body"),
        (line(7), "invalid_request", "custom_id"),
        (line(""), "invalid_request", "custom_id"),
        (line("a" * 513), "invalid_request", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(method="post"), "invalid_method", "method"),
        (line(method=1), "invalid_method", "method"),
        (line(url="/v1/chat/completions"), "url_mismatch", "url"),
        (line(url="/v1/embeddings/"), "url_mismatch", "url"),
        (line(url=["/v1/embeddings"]), "url_mismatch", "url"),
        (line(body=[]), "invalid_request", "body"),
        (line(body="{}"), "invalid_request", "body"),
        (line(body={"x": [1]}).replace(b"[1]", b"[" * 300 + b"]" * 300), "invalid_request", "body"),
        (line("z", body={"model": "other", "input": "a"}), "model_mismatch", "body.model"),
        (line("z", body={"input": "a"}), "model_mismatch", "body.model"),
        (line("first"), "duplicate_custom_id", "custom_id"),
    ],
)
def test_each_fault(content: bytes, code: str, param: str | None) -> None:
    """A wrong line has OpenAI's code, its number, blank lines counted, and the field."""
    lines = [line("first"), b"", content, line("last")]
    assert faults(b"\n".join(lines)) == [(code, 3, param)]


def test_errors_are_in_the_order_of_lines_and_bounded() -> None:
    """Errors of all kinds come in the order of lines; a file of wrong lines has 100 of them."""
    content = b"\n".join([line("a"), line("a"), b"{", line("b"), line("b")])
    assert [one[1] for one in faults(content)] == [2, 3, 5]
    assert len(faults(b"{\n" * 5000)) == 100
    assert len(faults((line("a") + b"\n") * 5000)) == 100


@pytest.mark.parametrize(
    "content", [b"", b"\n", b" \r\n\t\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"]
)
def test_no_requests(content: bytes) -> None:
    """A file without a request is an empty file."""
    assert faults(content) == [("empty_file", None, None)]


def test_marks_ends_and_blanks() -> None:
    """A byte order mark, CRLF, blank lines and a last line without an end are fine."""
    content = b"\xef\xbb\xbf" + b"\r\n".join([line("a"), b"", b"  ", line("b")])
    found = checked(content)
    assert (found.n_lines, found.errors) == (2, ())
    assert faults(line("a") + b"\n\xef\xbb\xbf" + line("b")) == [("invalid_json_line", 2, None)]


def test_the_limit_of_lines() -> None:
    """A file may have as many requests as the limit, and one more is an error on its line."""
    content = b"\n".join(line(f"r{n}") for n in range(5))
    assert faults(content, max_lines=5) == []
    assert faults(content + b"\n\n" + line("more"), max_lines=5) == [("too_many_tasks", 7, None)]


@pytest.mark.parametrize(
    ("value", "n_inputs"),
    [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2), ([], 1), (None, 1)],
)
def test_the_limit_of_inputs(value: Any, n_inputs: int) -> None:
    """The limit of lines counts embedding inputs too; an array of ids is one input."""
    content = line("a", body={"input": value}) + b"\n" + line("b", body={"input": "a"})
    assert faults(content, max_lines=n_inputs + 1) == []
    expected = [("too_many_tasks", 2, None)] if n_inputs > 1 else []
    assert faults(content, max_lines=max(2, n_inputs)) == expected


def test_long_lines() -> None:
    """A line over the limit is an error, and the lines after it are read."""
    long = line("long", body={"input": "x" * 5000})
    content = b"\n".join([line("a"), long, line("b"), b"{"])
    for step in (7, 100, 1 << 20):
        found = checked(content, step, max_line_bytes=1000)
        assert [(one.code, one.line) for one in found.errors] == [
            ("invalid_request", 2),
            ("invalid_json_line", 4),
        ]
        assert found.n_lines == 4


def test_a_long_line_is_not_held() -> None:
    """Of a line over the limit no more than the limit and a chunk is held."""
    import tracemalloc

    chunks = (b"x" * (1 << 16) for _ in range(1000))
    tracemalloc.start()
    found = list(split_lines(chunks, 1 << 17))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [RawLine(1, None, 1000 << 16)]
    assert peak < 1 << 20


@given(st.binary(max_size=400), st.integers(1, 50))
def test_lines_are_the_bytes_of_the_file(content: bytes, step: int) -> None:
    """Whatever the chunks are, lines have the numbers and the bytes of the file."""
    chunks = [content[at : at + step] for at in range(0, len(content), step)]
    found = list(split_lines(chunks, 1 << 20))
    assert sum(one.n_bytes for one in found) == len(content)
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    expected = content.split(b"\n")
    expected = expected if expected[-1] else expected[:-1]
    plain = [one.removesuffix(b"\r") for one in expected]
    if plain:
        plain[0] = plain[0].removeprefix(b"\xef\xbb\xbf")
    assert [one.content for one in found] == plain


@given(st.lists(st.sampled_from(["good", "blank", "long", "crlf"]), max_size=60), st.integers(1, 9))
def test_windows_cover_the_file(kinds: list[str], most: int) -> None:
    """Windows have every line once, in order; reading on behind any window gives the rest."""
    made = {"blank": b" ", "long": line("l", body={"input": ["x" * 90] * 4}), "good": line("g")}
    content = b"".join(made.get(kind, line("c") + b"\r") + b"\n" for kind in kinds)
    limits = WindowLimits(most, 600)

    def windows(start: int, n_before: int) -> list[Any]:
        return list(read_windows(split_lines([content[start:]], 9999, n_before), ENDPOINT, limits))

    found = windows(0, 0)
    assert sum(one.n_bytes for one in found) == len(content)
    assert sum(one.n_lines for one in found) == len(kinds)
    numbers = [request.number for one in found for request in one.requests]
    assert numbers == [n for n, kind in enumerate(kinds, 1) if kind != "blank"]
    if len(found) > 1:
        assert windows(found[0].n_bytes, found[0].n_lines) == found[1:]


def test_a_file_that_changes() -> None:
    """A line that is wrong where the check saw none ends the reading, and is named."""
    with pytest.raises(InvalidRequest, match=r"line 2.*changed"):
        list(read_windows(split_lines([line() + b"\n{"], 999), ENDPOINT, WindowLimits()))


def test_the_body_keeps_its_values() -> None:
    """The body of a line has the values that the line has, whatever their kinds."""
    body = {"input": "é😀\u0000", "n": [1, 2.5, -0.0, 1e300, 2**63, None, True], "": {"a": []}}
    found = read_line(RawLine(1, line(body=body), 1), ENDPOINT)
    assert not isinstance(found, LineError)
    assert orjson.loads(found[0].body) == body


def test_any_damage_is_a_line_error() -> None:
    """Bytes of a good file that are changed, cut or moved raise nothing but line errors."""
    rng = random.Random(20)
    whole = b"\n".join(line(f"r{n}", body={"input": ["é", "b" * n]}) for n in range(6))
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            match rng.randrange(3):
                case 0:
                    damaged[at] = rng.randrange(256)
                case 1:
                    del damaged[at : at + rng.randint(1, 30)]
                case _:
                    damaged[at:at] = damaged[rng.randrange(len(damaged)) :][: rng.randint(1, 30)]
        found = checked(bytes(damaged), rng.randint(1, 300))
        for error in found.errors:
            assert error.code, error
            assert error.message.isprintable(), error
            assert error.line is None or 1 <= error.line <= damaged.count(b"\n") + 1
