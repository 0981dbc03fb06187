"""What CPUs can do, by what Linux says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.core import cpu


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "fpu sse4_2 avx2 avx512f avx512_vnni", True),
        ("x86_64", "fpu sse4_2 avx2 avx_vnni", True),
        ("AMD64", "fpu sse4_2 avx2 fma", False),
        ("x86_64", "fpu sse4_2 avx2 avx512f avx512bw", False),
        ("aarch64", "", True),
    ],
)
def test_adds_bytes_exactly(tmp_path: Path, machine: str, flags: str, exact: bool) -> None:
    """VNNI in any of its forms, or another kind of CPU."""
    path = tmp_path / "cpuinfo"
    path.write_text(f"model name\t: X\nflags\t\t: {flags}\n")
    assert cpu.adds_bytes_exactly(machine, path) is exact


def test_unknown_cpus_are_taken_not_to(tmp_path: Path) -> None:
    """Slow and right, where nothing tells."""
    assert not cpu.adds_bytes_exactly("x86_64", tmp_path / "none")


def test_description_is_stable() -> None:
    """It is in the name of the folder of packed weights."""
    assert cpu.description()
    cpu.description.cache_clear()
    assert cpu.description() == cpu.description()
