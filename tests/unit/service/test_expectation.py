"""Which fingerprints a caller's expectation lets pass."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matryo.core.errors import FingerprintMismatch, InvalidRequest
from matryo.service import EmbeddingType
from matryo.service.expectation import check_expected, expected_of

FULL = "nomic-embed-text-v1.5/int8/0123456789abcdef+native/query/768/float"

_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True)
_fingerprints = st.builds(
    lambda *parts: "/".join(map(str, parts)),
    _names,
    st.sampled_from(("fp32", "int8", "q8", "q4")),
    st.from_regex(r"[0-9a-f]{16}(\+native)?(\+trusted)?", fullmatch=True),
    _names,
    st.integers(1, 4096),
    st.sampled_from((*get_args(EmbeddingType), "float+unnormalized")),
)


def passes(expected: str | None, fingerprint: str) -> bool:
    """Whether vectors of a fingerprint are given to a caller that expects another."""
    refused: FingerprintMismatch | None = None
    try:
        check_expected(expected, fingerprint)
    except FingerprintMismatch as exc:
        refused = exc
    if refused is None:
        return True
    assert (refused.expected, refused.fingerprint) == (expected, fingerprint)
    assert refused.code == "fingerprint_mismatch"
    assert fingerprint in refused.message
    assert len(refused.message) < 900
    assert refused.message.isprintable()
    return False


@given(_fingerprints, st.integers(1, 6), st.booleans())
def test_leading_parts_pass(fingerprint: str, n_parts: int, slash: bool) -> None:
    """Every leading part passes, with a slash behind it or without."""
    part = "/".join(fingerprint.split("/")[:n_parts])
    assert passes(part + "/" * slash, fingerprint)


@given(_fingerprints, st.data())
def test_everything_else_fails(fingerprint: str, data: st.DataObject) -> None:
    """Anything else fails: a part cut short, another fingerprint, any text."""
    cut = st.integers(1, len(fingerprint)).map(lambda end: fingerprint[:end])
    swapped = st.integers(0, len(fingerprint) - 1).map(
        lambda at: fingerprint[:at] + "~" + fingerprint[at + 1 :]
    )
    longer = st.text(min_size=1).map(lambda more: fingerprint + more)
    any_text = st.text(min_size=1).filter(lambda text: text != "/")
    expected = data.draw(st.one_of(cut, swapped, longer, any_text, _fingerprints))
    parts = fingerprint.split("/")
    leading = {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    allowed = leading | {f"{part}/" for part in leading}
    assert passes(expected, fingerprint) == (expected in allowed)


@given(st.text())
@example("")
@example("/")
@example("\u202e" * 9000)
def test_empty(text: str) -> None:
    """An empty expectation is an error of its own, and never lets vectors pass."""
    if text in ("", "/"):
        with pytest.raises(InvalidRequest, match="empty"):
            check_expected(text, FULL)
    elif text.strip():
        assert not passes(text, FULL)


def test_none_expects_nothing() -> None:
    """A caller that says nothing takes any vectors."""
    assert passes(None, FULL)


@pytest.mark.parametrize(
    ("expected", "what", "remedy"),
    [
        ("another/int8", "another model", "Use the model"),
        ("nomic-embed-text-v1.5/fp32", "another precision", "Use the model"),
        (
            "nomic-embed-text-v1.5/int8/0123456789abcdef",
            "another build (weights",
            "precision and build",
        ),
        ("NOMIC-embed-text-v1.5/int8", "another model", "Use the model"),
        (FULL.replace("query", "document"), "another input type.", "Ask for the input type"),
        (FULL.replace("768", "256"), "another number of dimensions.", "Ask for the input type"),
        (FULL.replace("float", "int8"), "another number type.", "Ask for the input type"),
        (
            FULL.replace("query/768", "none/64"),
            "input type and number of dimensions.",
            "the input type",
        ),
        (
            FULL.replace("int8", "q8").replace("768", "64"),
            "precision and number of dimensions",
            "Use the model",
        ),
        (f"{FULL}/more", "another number of parts", "what x-matryo-fingerprint says"),
        ("/nomic-embed-text-v1.5", "another model", "Use the model"),
    ],
)
def test_says_what_differs(expected: str, what: str, remedy: str) -> None:
    """The message names both fingerprints, the part that differs, and what to do."""
    with pytest.raises(FingerprintMismatch) as error:
        check_expected(expected, FULL)
    message = error.value.message
    assert f"'{expected}'" in message
    assert what in message
    assert remedy in message


def test_several_headers() -> None:
    """One header is taken without the spaces around it, and several are refused."""
    assert expected_of([]) is None
    assert expected_of([" a/b\t"]) == "a/b"
    assert expected_of([" "]) == ""
    with pytest.raises(InvalidRequest, match="came 2 times"):
        expected_of(["a", "a"])
