"""What an operator may write in place of a model's id: a path, or a repository on a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from matryo.store.files import given_path

_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".json")
_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint, as an operator named it.

    Attributes:
        text: one spelling for all ways to write the same reference.
        path: of the folder or file, absolute; None for a repository.
        repo: of the repository, `org/name`; empty for a path.
        revision: branch, tag or commit that was asked for; None for the main branch.
    """

    text: str
    path: Path | None = None
    repo: str = ""
    revision: str | None = None


def is_path(text: str) -> bool:
    """Whether a text can only be a path, whatever models there are."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def parse_reference(text: str) -> Reference | None:
    """The checkpoint that a text names; None if the text can be the id of a model alone.

    A file or a folder of that name comes before a repository.

    Raises:
        SettingsInvalid: the text is a path below a home folder that does not exist.
    """
    if is_path(text) or text.lower().endswith(_SUFFIXES) or ("/" in text and Path(text).exists()):
        path = given_path(text)
        return Reference(str(path), path)
    if found := _REPO.fullmatch(text):
        return Reference(text, repo=found["repo"], revision=found["revision"])
    path = Path(text)
    if path.is_dir():
        path = given_path(text)
        return Reference(str(path), path)
    return None
