"""Settings that were fixed when a bundle was made: defaults, and values that nobody may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HELD = frozenset(("model", "models", "precision", "rotary_scaling_factor"))
"""Settings that a bundle holds one artefact for."""

REFUSED = frozenset(("add", "build", "bundle", "pull", "remove"))
"""Commands that a bundle does not have, because they change a store."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a bundle fixes.

    Attributes:
        values: text of a setting's default, by the setting's name; empty outside of a bundle.
        locked: names of settings that no flag, variable or request may change.
        where: path of the bundle, for messages.
    """

    values: Mapping[str, str] = field(default_factory=dict[str, str])
    locked: frozenset[str] = frozenset()
    where: str = ""

    @property
    def held(self) -> frozenset[str]:
        """Names of the settings that no flag and no variable may change."""
        return (HELD | self.locked) if self.where else frozenset()


_fixed = Fixed()


def fixed() -> Fixed:
    """What the bundle that this process runs from fixes; nothing outside of a bundle."""
    return _fixed


def fix(new: Fixed) -> None:
    """Fix settings of this process; called once, before settings are read."""
    global _fixed  # noqa: PLW0603 - one bundle for the whole process, known before anything else
    _fixed = new
