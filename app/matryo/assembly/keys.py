"""Which keys may call by these settings, and which files are watched for others?"""

from __future__ import annotations

from matryo.core.reload import Reloads
from matryo.core.settings import Settings
from matryo.service.key_file import NamedKey, bare_keys, merged, parse_keys, read_keys
from matryo.service.keys import KeyRing


def watch_keys(settings: Settings, ring: KeyRing, reloads: Reloads) -> None:
    """Let the keys of `settings` call, and follow the changes of their file.

    Args:
        settings: the operator's choices; without keys the server is open to all.
        ring: of the service.
        reloads: the files that the server reads again.

    Raises:
        SettingsInvalid: a key is wrong, or there are keys and none can be read.
    """

    def load() -> tuple[NamedKey, ...]:
        keys = load_keys(settings)
        ring.reserve(keys)
        return keys

    if settings.keys_file:
        reloads.watch("keys", [settings.keys_file], load, ring.replace)
    elif settings.has_keys:
        ring.replace(load())


def load_keys(settings: Settings) -> tuple[NamedKey, ...]:
    """The keys of all sources together, at least one where a source is set.

    Raises:
        SettingsInvalid: a key is wrong, or a source has no key.
    """
    found = read_keys(settings.keys_file) if settings.keys_file else []
    if settings.keys:
        found += parse_keys(settings.keys, "MATRYO_KEYS")
    return merged([*found, *bare_keys(settings.api_keys, "MATRYO_API_KEYS")])
