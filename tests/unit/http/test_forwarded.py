"""What a proxy's headers say of the caller, and from whom they count."""

from __future__ import annotations

from typing import Any

import pytest

from matryo.core.networks import Networks, address_of
from matryo.http.forwarded import is_proxy, note_origin

PROXIES = Networks(["10.0.0.0/8", "2001:db8::/32"])
PEER = ("10.0.0.1", 4000)


def origin(*headers: tuple[str, str], proxies: Networks = PROXIES) -> tuple[str, int, str]:
    """The caller's host and port and the scheme that a request of a proxy gets."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope: dict[str, Any] = {"headers": raw, "client": PEER, "scheme": "http"}
    note_origin(scope, proxies)
    return (*scope["client"], scope["scheme"])


class TestTrust:
    """Whose headers count."""

    @pytest.mark.parametrize(
        ("words", "client", "expected"),
        [
            (["127.0.0.1"], "127.0.0.1", True),
            (["127.0.0.1"], "127.0.0.2", False),
            (["127.0.0.1"], "::ffff:127.0.0.1", True),
            (["10.0.0.0/8", "192.168.1.7"], "10.255.3.4", True),
            (["10.0.0.0/8", "192.168.1.7"], "192.168.1.8", False),
            (["2001:db8::/32"], "2001:db8:1::9", True),
            (["2001:db8::/32"], "10.0.0.1", False),
            (["*"], "203.0.113.9", True),
            (["none"], "127.0.0.1", False),
            (["127.0.0.1"], None, False),
        ],
    )
    def test_addresses(self, words: list[str], client: str | None, expected: bool) -> None:
        """A peer is a proxy if its address is one of the operator's, IPv4 in IPv6 included."""
        peer = (client, 1) if client else None
        assert is_proxy(peer, Networks(words), is_local=False) is expected

    @pytest.mark.parametrize(("words", "expected"), [(["10.1.1.1"], True), (["none"], False)])
    def test_unix_sockets(self, words: list[str], expected: bool) -> None:
        """A peer over a Unix socket is a proxy, unless nobody is."""
        assert is_proxy(None, Networks(words), is_local=True) is expected

    @pytest.mark.parametrize("word", ["10.0.0.1/8", "proxy.local", "10.0.0", "1.2.3.4:80"])
    def test_no_network(self, word: str) -> None:
        """A word that is neither an address nor a network is refused, and named."""
        with pytest.raises(ValueError, match=f"has '{word}', which is neither"):
            Networks(["127.0.0.1", word])

    def test_mapped_addresses(self) -> None:
        """An IPv4 address that IPv6 writes its way is that address."""
        assert str(address_of("::ffff:192.0.2.1")) == "192.0.2.1"
        assert address_of("example.org") is None


class TestOrigin:
    """Who calls, and by which scheme."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("203.0.113.7", ("203.0.113.7", 0)),
            (" 203.0.113.7:5555 ", ("203.0.113.7", 5555)),
            ("2001:db9::1", ("2001:db9::1", 0)),
            ("[2001:db9::1]:5555", ("2001:db9::1", 5555)),
            # What the caller itself made up stands before the address that the proxy saw.
            ("1.1.1.1, 203.0.113.7", ("203.0.113.7", 0)),
            ("1.1.1.1, 203.0.113.7, 10.2.2.2", ("203.0.113.7", 0)),
            # Every address is a proxy's: the first of them called.
            ("10.9.9.9, 10.2.2.2", ("10.9.9.9", 0)),
            # What cannot be read ends the chain.
            ("203.0.113.7, nonsense, 10.2.2.2", ("10.2.2.2", 0)),
            ("nonsense", PEER),
            ("", PEER),
            (",,", PEER),
            ("203.0.113.7:99999", PEER),
            ("203.0.113.777", PEER),
            ("[203.0.113.7", PEER),
            ("unknown", PEER),
        ],
    )
    def test_x_forwarded_for(self, value: str, expected: tuple[str, int]) -> None:
        """The caller is the last address that no trusted proxy has."""
        assert origin(("x-forwarded-for", value)) == (*expected, "http")

    def test_several_headers(self) -> None:
        """Several headers of a name are one list."""
        both = (("x-forwarded-for", "203.0.113.7"), ("x-forwarded-for", "10.2.2.2"))
        assert origin(*both)[0] == "203.0.113.7"

    @pytest.mark.parametrize(
        ("hops", "value", "expected"),
        [
            ("203.0.113.7", "https", "https"),
            ("203.0.113.7", "HTTPS", "https"),
            ("203.0.113.7", "javascript", "http"),
            ("203.0.113.7", "", "http"),
            # The proxy that saw the caller spoke TLS; the next one did not.
            ("203.0.113.7, 10.2.2.2", "https, http", "https"),
            # The caller's own word is not believed.
            ("1.1.1.1, 203.0.113.7", "https, http", "http"),
            ("203.0.113.7, 10.2.2.2", "https", "https"),
        ],
    )
    def test_x_forwarded_proto(self, hops: str, value: str, expected: str) -> None:
        """The scheme is the one that the proxy nearest to the caller saw."""
        headers = (("x-forwarded-for", hops), ("x-forwarded-proto", value))
        assert origin(*headers)[2] == expected

    def test_proto_alone(self) -> None:
        """A proxy may say the scheme alone."""
        assert origin(("x-forwarded-proto", "https")) == (*PEER, "https")

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("for=203.0.113.7;proto=https", ("203.0.113.7", 0, "https")),
            ("for=203.0.113.7;proto=https;", ("203.0.113.7", 0, "https")),
            ('For="[2001:db9::1]:4711";by=10.0.0.1;PROTO=https', ("2001:db9::1", 4711, "https")),
            ('for="203.0.113.7:80" ; proto=http', ("203.0.113.7", 80, "http")),
            (
                "for=1.1.1.1;proto=https, for=203.0.113.7;proto=http, for=10.2.2.2",
                ("203.0.113.7", 0, "http"),
            ),
            ('for="a,b;c\\"=d", for=203.0.113.7', ("203.0.113.7", 0, "http")),
            ("for=_hidden;proto=https", (*PEER, "https")),
            ("for=unknown", (*PEER, "http")),
            # Malformed as a whole: nothing is believed.
            ("for=203.0.113.7,,proto=https", (*PEER, "http")),
            ("for 203.0.113.7", (*PEER, "http")),
            ('for="203.0.113.7', (*PEER, "http")),
            ("", (*PEER, "http")),
        ],
    )
    def test_forwarded(self, value: str, expected: tuple[str, int, str]) -> None:
        """RFC 7239's header says both, hop by hop."""
        assert origin(("forwarded", value)) == expected

    def test_both_kinds(self) -> None:
        """A proxy that writes X-Forwarded-For passes a caller's own Forwarded on: that is ignored."""
        headers = (("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-for", "203.0.113.7"))
        assert origin(*headers) == ("203.0.113.7", 0, "http")

    def test_everybody(self) -> None:
        """Where every peer is a proxy, the first address called."""
        headers = ("x-forwarded-for", "203.0.113.7, 198.51.100.1")
        assert origin(headers, proxies=Networks(["*"]))[0] == "203.0.113.7"

    def test_no_headers(self) -> None:
        """Without such headers the request is the peer's."""
        assert origin(("x-forwarded-host", "x"), ("via", "y")) == (*PEER, "http")

    def test_much(self) -> None:
        """A header as large as a head may be is read in a moment."""
        assert origin(("x-forwarded-for", "10.2.2.2," * 7000 + "203.0.113.7"))[0] == "203.0.113.7"
        assert origin(("forwarded", 'for="' + "\\" * 60_000)) == (*PEER, "http")
