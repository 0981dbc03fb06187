"""API keys: which caller shows a key that the operator gave out.

Keys are compared as digests of equal length, all of them, in constant time. No key, right
or wrong, is ever logged; an error shows at most its two ends, as OpenAI's does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from matryo.core.errors import Unauthorized
from matryo.service.request import OPEN, Caller

_SHOWN = 4


class KeyRing:
    """The keys that may call.

    Args:
        keys: none leaves the server open to all. A key is named after its position, `key-1` first.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._known = [(_digest(key), Caller(f"key-{n}")) for n, key in enumerate(keys, 1)]

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._known)

    def caller(self, key: str | None) -> Caller:
        """The caller that shows `key`.

        Args:
            key: what the caller showed; empty or None for nothing.

        Raises:
            Unauthorized: keys are set, and `key` is none of them.
        """
        if not self._known:
            return OPEN
        if not key:
            raise Unauthorized(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), "
                "or as the password field (with blank username) of Basic auth."
            )
        digest = _digest(key)
        found = [caller for known, caller in self._known if hmac.compare_digest(digest, known)]
        if not found:
            raise Unauthorized(
                f"Incorrect API key provided: {_masked(key)}. The operator of this server sets "
                "its keys in MATRYO_API_KEYS.",
                code="invalid_api_key",
            )
        return found[0]


def key_of(authorization: str | None) -> str:
    """The key that an `Authorization` header holds; empty if the header holds none."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    match scheme.lower():  # RFC 9110: the scheme is case-insensitive
        case "bearer":
            return rest.strip()
        case "basic":
            try:
                decoded = base64.b64decode(rest, validate=True).decode("utf-8", "surrogateescape")
            except (binascii.Error, ValueError):
                return ""
            return decoded.partition(":")[2]
        case _:
            return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _masked(key: str) -> str:
    """The two ends of a key that is long enough to keep its middle secret."""
    if len(key) < 4 * _SHOWN:
        return "*" * len(key)
    shown = key[:_SHOWN] + "***" + key[-_SHOWN:]
    return shown.encode("ascii", "replace").decode()
