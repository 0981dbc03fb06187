"""Keys: who may call, and what an error says to those who may not."""

from __future__ import annotations

import base64

import pytest

from matryo.core.errors import Unauthorized
from matryo.service import OPEN, Caller
from matryo.service.keys import KeyRing, key_of

KEY = "sk-0123456789abcdefghij"
RING = KeyRing(["other", KEY])


def basic(password: str) -> str:
    """A Basic header with a blank user."""
    return "Basic " + base64.b64encode(f":{password}".encode()).decode()


@pytest.mark.parametrize(
    "header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} ", "Bearer other", basic(KEY)]
)
def test_right_keys(header: str) -> None:
    """Any of the keys, by either scheme, whatever the scheme's case; the caller has its name."""
    name = "key-1" if header == "Bearer other" else "key-2"
    assert RING.caller(key_of(header)) == Caller(name)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", KEY, "Basic !!!", "Digest x"])
def test_no_key(header: str | None) -> None:
    """A header without a key is told how to give one."""
    with pytest.raises(Unauthorized, match="You didn't provide an API key") as caught:
        RING.caller(key_of(header))
    assert caught.value.code is None


@pytest.mark.parametrize(
    "key", [KEY + "x", KEY[:-1], KEY.upper(), "sécret\udcff-0123456789", "x" * 10_000]
)
def test_wrong_keys(key: str) -> None:
    """A wrong key is never repeated whole."""
    with pytest.raises(Unauthorized, match="Incorrect API key provided") as caught:
        RING.caller(key_of(f"Bearer {key}"))
    assert caught.value.code == "invalid_api_key"
    assert key not in caught.value.message
    assert len(caught.value.message) < 200
    caught.value.message.encode()


def test_short_wrong_keys_are_hidden() -> None:
    """A short key would be half told by its ends."""
    with pytest.raises(Unauthorized, match=r"provided: \*\*\*\*\*\*\."):
        RING.caller("secret")


def test_open_server() -> None:
    """Without keys everybody may call."""
    assert KeyRing([]).caller(None) == OPEN
    assert KeyRing([]).caller("anything") == OPEN
