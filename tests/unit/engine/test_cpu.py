"""What the CPU is said to be able to do."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path

import pytest

from matryo.engine.cpu import cpu_features

_FLAGS = {"AVX2": "avx2", "FMA3": "fma", "AVX512F": "avx512f", "AVX512VNNI": "avx512_vnni"}


@pytest.fixture(autouse=True)
def forget() -> None:
    """Each test asks anew."""
    cpu_features.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the names of x86's features")
def test_this_cpu() -> None:
    """On the CPU itself, the features are those that the system knows."""
    known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    for feature, flag in _FLAGS.items():
        assert (feature in cpu_features()) == (flag in known)


def test_a_numpy_without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is numpy's own: without it nothing is known, and nothing fails."""
    module = importlib.import_module("numpy._core._multiarray_umath")
    monkeypatch.setattr(module, "__cpu_features__", {"AVX2": True, "X86_V3": True, "FMA3": False})
    assert cpu_features() == ("AVX2",)
    cpu_features.cache_clear()
    monkeypatch.delattr(module, "__cpu_features__")
    assert cpu_features() == ()
    cpu_features.cache_clear()
