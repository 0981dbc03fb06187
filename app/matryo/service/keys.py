"""API keys: `Authorization: Bearer KEY`, or the password of `Basic`, as OpenAI takes them.

Keys are compared as digests of equal length, all of them, in constant time. No key, right
or wrong, is ever logged; an error shows at most its ends, as OpenAI's does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from matryo.core.errors import Unauthorized

_SHOWN = 4


class KeyRing:
    """The keys that may call.

    Args:
        keys: none leaves the server open to all.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """Let a request pass, by its `Authorization` header.

        Raises:
            Unauthorized: keys are set, and the header has none of them.
        """
        if not self._digests:
            return
        key = _key(authorization or "")
        if not key:
            raise Unauthorized(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), "
                "or as the password field (with blank username) of Basic auth."
            )
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized(
                f"Incorrect API key provided: {_masked(key)}. The operator of this server sets "
                "its keys in MATRYO_API_KEYS.",
                code="invalid_api_key",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key(authorization: str) -> str:
    scheme, _, rest = authorization.strip().partition(" ")
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


def _masked(key: str) -> str:
    """The ends of a key that is long enough to keep its middle."""
    if len(key) < 4 * _SHOWN:
        return "*" * len(key)
    shown = key[:_SHOWN] + "***" + key[-_SHOWN:]
    return shown.encode("ascii", "replace").decode()
