"""The panel of a start says what requests get."""

from __future__ import annotations

from pathlib import Path

import pytest

from matryo.catalog.reading import read_manifest
from matryo.commands.panel import _models
from matryo.core.environment import load_settings
from tests.unit.commands.guard.conftest import build


@pytest.mark.parametrize(
    ("own", "asked", "shown"),
    [
        ("", None, "32 dimensions"),
        ("default = 16\n", None, "32 dimensions, 16 by default"),
        ("", "16", "32 dimensions, 16 by default"),
        ("default = 16\n", "32", "32 dimensions"),
    ],
)
def test_default_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, asked: str | None, shown: str
) -> None:
    """The size of a request that names none is shown, whoever chose it."""
    built = build(
        tmp_path,
        lambda text: text.replace("[output.dimensions]\n", f"[output.dimensions]\n{own}"),
    )
    for name, value in built.env.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(None, dimensions=asked)
    manifest = read_manifest(built.model.models / built.model.id)
    (name, value), _ = _models(settings, [manifest])
    assert (name, value) == ("model", f"tiny, fp32, {shown}")
