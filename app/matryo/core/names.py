"""Names of variables that look like settings and are none: slips, and other people's names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from matryo.core.errors import SettingsInvalid
from matryo.core.sources import PREFIX

# Kubernetes gives a pod variables for every service of its namespace. The services "matryo" and
# "matryo-api" make names that look like settings.
_KUBERNETES = re.compile(r"MATRYO_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)\w*)")
_KUBERNETES_VALUE = re.compile(r"(tcp|udp|sctp)://")

# Parts of names that mean a key. A server whose key has a misspelt name would be open.
_KEY_WORDS = frozenset(
    ("APIKEY", "APIKEYS", "AUTH", "BEARER", "KEY", "KEYS", "PASSWORD", "SECRET", "SECRETS")
)
# matryo-native reads it.
_NATIVE_ISA = "MATRYO_NATIVE_ISA"
# Deployments name their image so, and mean no setting, though MATRYO_PAGE is near.
_IMAGE = "MATRYO_IMAGE"
_LEAST_LIKENESS = 0.66
_LEAST_BEGINNING = 3


def check_names(values: Mapping[str, str], known: Collection[str], source: str = "") -> list[str]:
    """A sentence for each variable that is no setting.

    Args:
        values: variables by name, `MATRYO_` ones alone.
        known: names of the settings.
        source: the file the variables are from, for messages; empty for the environment.

    Raises:
        SettingsInvalid: a name is near that of a setting: the operator meant that setting.
    """
    where = f" in {source}" if source else ""
    sentences: list[str] = []
    for name in sorted(values.keys() - known - {_NATIVE_ISA}):
        if _KUBERNETES.fullmatch(name) or _KUBERNETES_VALUE.match(values[name]):
            continue
        near = None if name == _IMAGE else _nearest(name, known)
        if near:
            raise SettingsInvalid(
                f"{name}{where} is no setting; did you mean {near}? Rename or unset the variable."
            )
        sentences.append(f"{name}{where} is no setting and is ignored")
    return sentences


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The setting that was meant by `name`; None if no setting is like it."""
    stem = name.removeprefix(PREFIX)
    stems = [setting.removeprefix(PREFIX) for setting in known]
    near = difflib.get_close_matches(stem, stems, n=1, cutoff=_LEAST_LIKENESS)
    if not near and len(stem) >= _LEAST_BEGINNING:
        near = [setting for setting in stems if setting.startswith(stem)]
    if not near and _KEY_WORDS.intersection(stem.split("_")):
        near = ["API_KEYS"]
    return PREFIX + near[0] if near else None
