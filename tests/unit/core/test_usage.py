"""What the processes of a server use together."""

from __future__ import annotations

from pathlib import Path

from matryo.core.usage import Usage, processes_of


def add(proc: Path, number: int, anonymous: int, mapped: int, files: int) -> None:
    """A process as the kernel shows it, with memory in KiB."""
    folder = proc / str(number)
    (folder / "fd").mkdir(parents=True)
    lines = (f"RssAnon:\t{anonymous} kB", f"RssFile:\t{mapped} kB", "RssShmem:\t0 kB")
    (folder / "status").write_text("Name:\tx\n" + "\n".join(lines) + "\n")
    for n in range(files):
        (folder / "fd" / str(n)).touch()


def values(usage: Usage) -> dict[str, float]:
    """The value of each metric."""
    return {family.name: family.samples[0].value for family in usage.collect()}


def test_shared_files_count_once(tmp_path: Path) -> None:
    """Each process has its own anonymous memory; the files that processes map are there once."""
    add(tmp_path, 1, 10, 200, 3)
    add(tmp_path, 2, 20, 300, 4)
    add(tmp_path, 3, 5, 50, 1)  # the parent, which serves nobody
    usage = Usage(lambda: ({1, 2, 99}, {3}), tmp_path)  # 99 has just ended
    assert values(usage) == {
        "matryo_resident_memory_bytes": 1024 * (35 + 300),
        "matryo_open_files": 8,
        "matryo_processes": 2,
    }


def test_no_such_system(tmp_path: Path) -> None:
    """Where the kernel shows no processes, no metric has a wrong value."""
    assert values(Usage(lambda: ({1}, set()), tmp_path)) == {}


def test_the_processes_of_a_folder(tmp_path: Path) -> None:
    """The processes are those that have a file of gauges."""
    for name in ("gauge_livesum_12.db", "gauge_livesum_7.db", "counter_3.db", "lock"):
        (tmp_path / name).touch()
    serving, _others = processes_of(tmp_path)()
    assert serving == {12, 7}
