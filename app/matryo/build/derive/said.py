"""One value that a file of a checkpoint has, with the file and the key that have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matryo.build.limits import FACTS_MAX_BYTES
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import read_json, refusing

_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class Said:
    """A value, and who says so.

    Attributes:
        value: in the manifest's words.
        file: name of the file, relative to the checkpoint's folder.
        key: the value's key in that file, or a few words for what shows the value.
    """

    value: Any
    file: str
    key: str

    @property
    def where(self) -> str:
        """File and key, for a message."""
        return f"{self.file}: {self.key}" if self.key else self.file


class JsonFile:
    """The object in a JSON file beside the weights; empty if there is no such file.

    Args:
        folder: of the checkpoint.
        name: of the file, relative to the folder.
        most: most bytes of the file.

    Raises:
        CheckpointMismatch: the file holds anything but an object.
    """

    def __init__(self, folder: Path, name: str, most: int = FACTS_MAX_BYTES) -> None:
        self.name = name
        self.path = folder / name
        self.exists = self.path.is_file()
        self.values: Mapping[str, Any] = {}
        if not self.exists:
            return
        with refusing(self._odd):
            found = read_json(self.path, most)
            if not isinstance(found, dict):
                raise ValueError("it holds no object")  # noqa: TRY004 - one error for any content
            self.values = cast("dict[str, Any]", found)

    def _odd(self, reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(f"{self.path} cannot be read: {reason}. Fetch the file again.")

    def said(self, *names: str) -> Said | None:
        """The value of the first of these keys that is there; None if none is.

        Args:
            names: keys; a dot leads into a table.
        """
        for name in names:
            value: object = self.values
            for part in name.split("."):
                table = cast("dict[str, object]", value) if isinstance(value, dict) else {}
                if part not in table:
                    break
                value = table[part]
            else:
                return Said(value, self.name, name)
        return None

    def refuse(self, said: Said, must: str) -> CheckpointMismatch:
        """The error for a value that cannot be used.

        Args:
            said: the value.
            must: what the value must be, and the remedy; a sentence without its end.
        """
        return CheckpointMismatch(f"{self.path}: {said.key} is {shown(said.value)}, but {must}.")


def shown(value: object) -> str:
    """A value for a message; a file may hold one of any length."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
