"""How much memory a process may use, by its control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from matryo.assembly.service import memory_budget
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from matryo.core.memory import available_memory, is_in_memory


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "536870912\n", 536870912),
        ("memory.high", "1000000\n", 1000000),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "268435456\n", 268435456),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_available_memory(tmp_path: Path, file: str, text: str, expected: int | None) -> None:
    """The container's limit counts if there is one, in either version; else the machine's memory."""
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/a/b\n0::/a/b\n", "utf-8")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    machine = available_memory(tmp_path / "nothing", tmp_path / "nothing")
    assert available_memory(tmp_path, membership) == (expected or machine)


def test_the_budget_is_divided() -> None:
    """Several processes share the operator's budget."""
    one = load_settings(None, memory_budget_bytes=400_000_000)
    four = load_settings(None, memory_budget_bytes=400_000_000, processes=4)
    assert memory_budget(one) == 4 * memory_budget(four) == 400_000_000


def test_a_budget_without_room_for_one_body() -> None:
    """A budget that could never hold one allowed body is refused, and both settings are named."""
    with pytest.raises(SettingsInvalid, match=r"MATRYO_MAX_BODY_BYTES.*MATRYO_MEMORY_BUDGET_BYTES"):
        memory_budget(load_settings(None, memory_budget_bytes=20_000_000))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/run/a/b", True),
        ("/run", True),
        ("/run/disk/a", False),
        ("/runfile", False),
        ("/with blank/a", True),
        ("/over", False),
    ],
)
def test_folders_in_memory(tmp_path: Path, folder: str, expected: bool) -> None:
    """The nearest mount above a folder counts, and of two at one path the later one."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/sdb1 /run/disk xfs rw 0 0\n"
        "none /with\\040blank ramfs rw 0 0\ntmpfs /over tmpfs rw 0 0\n/dev/sdc /over ext4 rw 0 0\n"
    )
    assert is_in_memory(Path(folder), mounts) == expected
    assert not is_in_memory(Path(folder), tmp_path / "none")
