"""The seconds of a start."""

from __future__ import annotations

import pytest

from matryo.core import steps
from matryo.core.steps import Steps


def test_a_step_inside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that happens inside another one counts once; seconds of one step add up."""
    now = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    found = Steps()
    with found.timed("load"):
        now[0] += 1
        with found.timed("pull"):
            now[0] += 10
        found.add({"build": 5})  # measured in another process, meanwhile
        now[0] += 7
    with found.timed("pull"):
        now[0] += 1
    assert found.seconds == {"pull": 11, "build": 5, "load": 3}
