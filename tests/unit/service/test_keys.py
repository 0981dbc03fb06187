"""Keys: who may call, and what an error says to those who may not."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from matryo.core.errors import ModelForbidden, RequestRateReached, Unauthorized
from matryo.core.metrics import Metrics
from matryo.service import OPEN, Caller
from matryo.service.key_file import NamedKey, bare_keys, hash_of, merged, parse_keys
from matryo.service.keys import KeyRing, key_of

KEY = "sk-0123456789abcdefghij"
MOMENT = 1_800_000_000.0


def ring_of(*keys: NamedKey, now: float = MOMENT) -> KeyRing:
    """A ring with these keys, on a server of the model `model-a`, also called `alias-a`."""
    names = {"model-a": "model-a", "alias-a": "model-a"}
    ring = KeyRing(names.get, Metrics(CollectorRegistry()), now=lambda: now)
    if keys:
        ring.replace(keys)
    return ring


def line(name: str, key: str = KEY, limits: str = "") -> str:
    """A line of a file of keys."""
    return f'{name} = {{ sha256 = "{hash_of(key)}"{limits} }}'


def keys_of(*lines: str) -> tuple[NamedKey, ...]:
    """The keys of some lines."""
    return merged(parse_keys("\n".join(lines), "keys"))


RING = ring_of(*bare_keys(["other", KEY], "MATRYO_API_KEYS"))


def basic(password: str) -> str:
    """A Basic header with a blank user."""
    return "Basic " + base64.b64encode(f":{password}".encode()).decode()


@pytest.mark.parametrize(
    "header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} ", "Bearer other", basic(KEY)]
)
def test_right_keys(header: str) -> None:
    """Any of the keys, by either scheme, whatever the scheme's case.

    A bare key is named after its two ends, and a short one after its number.
    """
    name = "***1" if header == "Bearer other" else "sk-0***ghij"
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
    assert ring_of().caller(None) == OPEN
    assert ring_of().caller("anything") == OPEN


def test_hash_is_no_key() -> None:
    """Whoever reads the file cannot call with what is written there."""
    ring = ring_of(*keys_of(line("search")))
    with pytest.raises(Unauthorized):
        ring.caller(hash_of(KEY))


def test_two_keys_of_one_name() -> None:
    """A name may have two keys while one replaces the other; both use the same limits."""
    hashes = f'["{hash_of(KEY)}", "{hash_of("sk-next")}"]'
    ring = ring_of(*keys_of(f"search = {{ sha256 = {hashes}, requests_per_minute = 2 }}"))
    first, second = ring.caller(KEY), ring.caller("sk-next")
    assert first == second == Caller("search")
    assert first.allowance is second.allowance


@pytest.mark.parametrize(("now", "is_over"), [(MOMENT - 1, False), (MOMENT, True)])
def test_expiry(now: float, *, is_over: bool) -> None:
    """From the moment of its expiry a key is refused, and the error says since when."""
    ring = ring_of(*keys_of(line("old", limits=", expires = 2027-01-15T08:00:00Z")), now=now)
    if not is_over:
        assert ring.caller(KEY).name == "old"
        return
    with pytest.raises(Unauthorized, match="`old` expired at 2027-01-15T08:00:00Z") as caught:
        ring.caller(KEY)
    assert caught.value.code == "invalid_api_key"


class TestReplacing:
    """Keys are replaced while callers go on."""

    def test_removed_key(self) -> None:
        """A key that is gone is refused from the next request; others are not concerned."""
        ring = ring_of(*keys_of(line("a", "sk-a"), line("b", "sk-b")))
        ring.replace(keys_of(line("b", "sk-b"), line("c", "sk-c")))
        assert [ring.caller(key).name for key in ("sk-b", "sk-c")] == ["b", "c"]
        with pytest.raises(Unauthorized):
            ring.caller("sk-a")

    def test_usage_is_kept(self) -> None:
        """A name keeps what it has used, whatever becomes of its key and its limits."""
        ring = ring_of(*keys_of(line("a", limits=", requests_per_minute = 2")))
        running = ring.caller(KEY)
        assert running.allowance
        running.allowance.charge_request()
        ring.replace(keys_of(line("b", "sk-b")))
        ring.replace(keys_of(line("a", "sk-new", ", requests_per_minute = 2")))
        allowance = ring.caller("sk-new").allowance
        assert allowance
        allowance.charge_request()
        with pytest.raises(RequestRateReached):
            allowance.charge_request()

    def test_counts(self) -> None:
        """The metrics know how many keys may call."""
        metrics = Metrics(CollectorRegistry())
        ring = KeyRing(lambda _: None, metrics)
        assert metrics.registry.get_sample_value("matryo_keys_loaded") == 0
        ring.replace(keys_of(line("a", "sk-a"), line("b", "sk-b")))
        assert metrics.registry.get_sample_value("matryo_keys_loaded") == 2


def test_models(caplog: pytest.LogCaptureFixture) -> None:
    """A key may use the models that any of their names stands for; an unknown name is logged."""
    ring = ring_of(*keys_of(line("a", limits=', models = ["alias-a", "model-x"]')))
    caller = ring.caller(KEY)
    caller.check_model("model-a")
    assert caller.may_use("model-a")
    assert not caller.may_use("model-b")
    with pytest.raises(ModelForbidden, match=r"`a` does not have access to model `model-b`"):
        caller.check_model("model-b")
    assert "model-x" in caplog.text


def test_weight() -> None:
    """A caller has the weight of its key, 1 by default."""
    ring = ring_of(*keys_of(line("a", limits=", weight = 2"), line("b", "sk-b")))
    found: dict[str, Any] = {key: ring.caller(key).weight for key in (KEY, "sk-b")}
    assert found == {KEY: 2.0, "sk-b": 1.0}
