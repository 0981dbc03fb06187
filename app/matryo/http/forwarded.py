"""Who really calls, and by which scheme, where a proxy stands between: what its headers say.

Anybody can send these headers. They count only from a peer that the operator names as a proxy, and
only as far as the chain leads through such proxies: an address is believed if the one who wrote it
down is.

Source: RFC 7239 for `Forwarded`; `X-Forwarded-For` and `X-Forwarded-Proto` by custom.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.types import Scope

from matryo.core.networks import Networks, address_of

_FOR, _PROTO, _FORWARDED = b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"
_NAMES = frozenset((_FOR, _PROTO, _FORWARDED))
_SCHEMES = ("http", "https")

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - HTTP's word for a word
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_PAIR = re.compile(rf"[ \t]*({_TOKEN})=(?:({_TOKEN})|{_QUOTED})[ \t]*([;,]|$)")
_NODE = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?")
_MOST_PORT = 65_535


def is_proxy(client: tuple[str, int] | None, proxies: Networks, *, is_local: bool) -> bool:
    """Whether the headers of a peer say who calls.

    Args:
        client: host and port of the peer; None if unknown.
        proxies: that the operator trusts.
        is_local: whether the peer came over a Unix socket, which has no addresses.
    """
    if is_local:
        return None in proxies
    address = client and address_of(client[0])
    return address is not None and address in proxies


def note_origin(scope: Scope, proxies: Networks) -> None:
    """Put the caller and the scheme of a proxy's headers into a request's scope.

    Of a chain of proxies, the caller is the last address that no trusted proxy has. A part that
    cannot be read ends the chain. `Forwarded` counts only without the other two: a proxy that
    writes those passes on a `Forwarded` that its own caller made up.

    Args:
        scope: of a request that a proxy sent.
        proxies: that the operator trusts.
    """
    found: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        if name in _NAMES:
            found.setdefault(name, []).append(value.decode("latin-1"))
    if not found:
        return
    if _FOR in found or _PROTO in found:
        hops = _words(found.get(_FOR, ()))
        schemes = _words(found.get(_PROTO, ()))
    else:
        pairs = _elements(",".join(found[_FORWARDED]))
        hops = [pair.get("for", "") for pair in pairs]
        schemes = [pair.get("proto", "") for pair in pairs]
    n_hops = 1
    for n, hop in enumerate(reversed(hops), 1):
        node = _node(hop)
        address = node and address_of(node[0])
        if node is None or address is None:
            break
        scope["client"], n_hops = (str(address), node[1]), n
        if address not in proxies:
            break
    if schemes:
        scheme = schemes[-min(n_hops, len(schemes))].lower()
        if scheme in _SCHEMES:
            scope["scheme"] = scheme


def _words(values: Sequence[str]) -> list[str]:
    """The words of a list that one or several headers hold."""
    return [word.strip() for word in ",".join(values).split(",")] if values else []


def _elements(value: str) -> list[dict[str, str]]:
    """The elements of `Forwarded`, the first proxy's first; none if the header is malformed."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while at < len(value):
        match = _PAIR.match(value, at)
        if match is None:
            return []
        name, word, quoted, end = match.groups()
        elements[-1][name.lower()] = word or re.sub(r"\\(.)", r"\1", quoted)
        if end == ",":
            elements.append({})
        at = match.end()
    return elements if all(elements) else []


def _node(hop: str) -> tuple[str, int] | None:
    """Host and port of one hop, the port 0 if unknown; None for a hop without an address."""
    if match := _NODE.fullmatch(hop):
        host, port = match[1] or match[3], int(match[2] or match[4] or 0)
        return (host, port) if port <= _MOST_PORT else None
    return (hop, 0) if ":" in hop else None  # IPv6 without brackets, as X-Forwarded-For has it
