"""Sets of IP addresses: which peers are proxies that may speak for others, what is loopback."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from matryo.core.sources import shown

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

EVERYBODY, NOBODY = "*", "none"


class Networks:
    """A set of addresses.

    Args:
        words: addresses and networks such as `10.0.0.0/8`; `*` for every address, `none` for none.

    Raises:
        ValueError: a word is none of these; the message ends the sentence of a setting.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._has_all = EVERYBODY in words
        self._networks = [_network(word) for word in words if word not in (EVERYBODY, NOBODY)]

    def __bool__(self) -> bool:
        return self._has_all or bool(self._networks)

    def __contains__(self, address: Address | None) -> bool:
        """Whether an address is in the set. None, a Unix socket's peer, is in each that has any."""
        if self._has_all or address is None:
            return bool(self)
        return any(address in network for network in self._networks)


def _network(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(word)
    except ValueError as exc:
        raise ValueError(
            f"has {shown(word)}, which is neither an address nor a network. Write addresses such "
            "as 10.1.2.3, networks such as 10.0.0.0/8, * for every peer, or none"
        ) from exc


def address_of(text: str) -> Address | None:
    """The address that a text is; None if the text is none.

    A peer that reaches an IPv6 socket over IPv4 has its IPv4 address.
    """
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
