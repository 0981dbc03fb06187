"""docs/vectors.md names every setting and every field, with one of three effects."""

from __future__ import annotations

import re
from pathlib import Path

from matryo.core.settings import Settings
from matryo.core.sources import PREFIX
from matryo.http.openai.wire import EmbeddingRequest

PAGE = Path(__file__).parents[2] / "docs" / "vectors.md"


def rows(heading: str) -> list[tuple[str, str, str]]:
    """Name, effect and sign of each row of the table below a heading."""
    section = PAGE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) ?\|$", section, re.MULTILINE)


def test_settings() -> None:
    """No setting is missing, and none is there that does not exist."""
    names = [name for name, _, _ in rows("Settings")]
    assert sorted(names) == sorted(PREFIX + name.upper() for name in Settings.model_fields)


def test_fields() -> None:
    """No field is missing, and none is there that does not exist."""
    names = [name for name, _, _ in rows("Fields of a request")]
    assert sorted(names) == sorted(EmbeddingRequest.model_fields)


def test_effects() -> None:
    """Each effect is one of three, and what changes a vector or refuses names its sign."""
    for name, effect, sign in rows("Settings") + rows("Fields of a request"):
        word = re.split(r"[ ,:]", effect)[0]
        assert word in ("nothing", "changes", "refuses"), name
        assert (word == "nothing") == (not sign) or name == "input", name
