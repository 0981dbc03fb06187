"""API keys: which caller shows a key that the operator gave out.

Keys are hashed in memory. No key, right or wrong, is ever logged; an error shows at most its two
ends, as OpenAI's does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from matryo.core.errors import Unauthorized
from matryo.core.metric_list import LIMIT_REASONS
from matryo.core.metrics import Metrics
from matryo.service.allowance import Allowance, KeyLimits
from matryo.service.key_file import NamedKey, masked
from matryo.service.ledger import Ledger
from matryo.service.request import OPEN, Caller

log = logging.getLogger("matryo")

_MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that may call.

    Attributes:
        digest: SHA-256 of the key.
        caller: who shows the key.
        expires_at: seconds since 1970 UTC from which the key is refused; None for never.
    """

    digest: bytes
    caller: Caller
    expires_at: float | None


class KeyRing:
    """The keys that may call: none, until `replace` is called, which leaves the server open to all.

    Args:
        find_model: the id of the served model that has a name; None if none has.
        metrics: what is counted.
        ledger: what each key has used.
        now: seconds since 1970 UTC.
    """

    def __init__(
        self,
        find_model: Callable[[str], str | None],
        metrics: Metrics,
        ledger: Ledger | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._find_model, self._metrics, self._now = find_model, metrics, now
        self._ledger = ledger or Ledger()
        self._allowances: dict[str, Allowance] = {}
        # A key is looked up by a hash that nobody outside can compute, so that the time of a look
        # says nothing about the hashes of the keys, and does not grow with their number.
        self._secret = secrets.token_bytes(32)
        self._known: dict[bytes, _Known] = {}
        self._by_name: dict[str, Caller] = {}
        self._nobody = _Known(secrets.token_bytes(32), OPEN, None)
        self._names: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._known)

    def reserve(self, keys: Sequence[NamedKey]) -> None:
        """Have a row for each key, so that `replace` cannot fail; for any thread.

        Raises:
            OSError: the folder that the processes of this server share has no room.
        """
        for one in keys:
            self._ledger.row(one.name)

    def replace(self, keys: Sequence[NamedKey]) -> None:
        """Let these keys call from now on, and no others. A name keeps what it has used.

        Args:
            keys: at least one, each with a name and hashes of its own.
        """
        known: dict[bytes, _Known] = {}
        by_name: dict[str, Caller] = {}
        for one in keys:
            caller = by_name[one.name] = Caller(one.name, one.key.weight, self._allowance(one))
            expires_at = one.key.expires and one.key.expires.timestamp()
            for digits in one.key.sha256:
                digest = bytes.fromhex(digits)
                known[self._mac(digest)] = _Known(digest, caller, expires_at)
        self._known, self._by_name = known, by_name
        self._metrics.keys_loaded.set(len(keys))
        names = frozenset(one.name for one in keys)
        if self._names:
            log.info(
                "keys: %d, new: %s; gone: %s",
                len(names),
                ", ".join(sorted(names - self._names)) or "none",
                ", ".join(sorted(self._names - names)) or "none",
            )
        self._names = names

    def caller(self, key: str | None) -> Caller:
        """The caller that shows `key`.

        Args:
            key: what the caller showed; empty or None for nothing.

        Raises:
            Unauthorized: keys are set, and `key` is none of them, or has expired.
        """
        if not self._known:
            return OPEN
        if not key:
            raise Unauthorized(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), "
                "or as the password field (with blank username) of Basic auth."
            )
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = self._known.get(self._mac(digest), self._nobody)
        if not hmac.compare_digest(digest, found.digest):
            raise Unauthorized(
                f"Incorrect API key provided: {masked(key) or '*' * len(key)}. The operator of "
                "this server gives out its keys.",
                code="invalid_api_key",
            )
        if found.expires_at is not None and found.expires_at <= self._now():
            moment = datetime.fromtimestamp(found.expires_at, UTC).isoformat()
            raise Unauthorized(
                f"The API key `{found.caller.name}` expired at {moment.replace('+00:00', 'Z')}. "
                "Ask the operator of this server for a new one.",
                code="invalid_api_key",
            )
        return found.caller

    def named(self, name: str) -> Caller | None:
        """The caller whose key has a name; None if no key has."""
        return self._by_name.get(name)

    def _mac(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=_MAC_BYTES).digest()

    def _allowance(self, one: NamedKey) -> Allowance:
        """The allowance of a name, with the limits that the name has now."""
        if one.name not in self._allowances:
            self._allowances[one.name] = Allowance(
                one.name, self._ledger.row(one.name), self._counted(one.name)
            )
        allowance = self._allowances[one.name]
        for reason in LIMIT_REASONS:  # an alert cannot see the first event of a new series
            self._metrics.caller_rejections.labels(one.name, reason)
        models = one.key.models
        allowance.limits = KeyLimits(
            one.key.requests_per_minute,
            one.key.tokens_per_minute,
            one.key.tokens_per_day,
            None if models is None else frozenset(self._ids(one.name, models)),
        )
        return allowance

    def _ids(self, name: str, models: Sequence[str]) -> list[str]:
        found = {model: self._find_model(model) for model in models}
        if unknown := [model for model, model_id in found.items() if model_id is None]:
            log.warning("key %s names models not served here: %s", name, ", ".join(unknown))
        return [model_id for model_id in found.values() if model_id is not None]

    def _counted(self, name: str) -> Callable[[str], None]:
        def count(reason: str) -> None:
            self._metrics.rejections.labels(reason).inc()
            self._metrics.caller_rejections.labels(name, reason).inc()

        return count


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
