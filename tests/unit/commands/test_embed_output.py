"""Where `matryo embed` writes, and what is left when it cannot finish."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.conftest import wait_until
from tests.unit.commands.conftest import Command

LINES = "".join(f"the sky {number}\n" for number in range(700))


def sentence(stderr: str | bytes) -> str:
    """The one line that a failure prints."""
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    assert text.count("\n") == 1, text
    assert text.startswith("matryo: "), text
    return text


class TestSameFile:
    """The input is never overwritten."""

    @pytest.mark.parametrize("link", [None, os.link, os.symlink])
    def test_refused(self, embed: Command, tmp_path: Path, link: Any) -> None:
        """Under its own name, a hard link's or a symbolic link's."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\n')
        out = tmp_path / "b.jsonl" if link else tmp_path / "." / ".." / tmp_path.name / "a.jsonl"
        if link:
            link(path, out)
        done = embed(path, "--output", out)
        assert done.exit_code == 1
        assert "is the input" in sentence(done.stderr)
        assert path.read_text() == '{"text": "a"}\n'

    def test_part(self, embed: Command, tmp_path: Path) -> None:
        """The name under which the output is written first is not the input's, either."""
        path = tmp_path / "v.jsonl.part"
        path.write_text("a\n")
        assert "is the input" in sentence(embed(path, "--output", tmp_path / "v.jsonl").stderr)
        assert path.read_text() == "a\n"

    def test_redirected(self, embed: Command, tmp_path: Path) -> None:
        """A redirected input or output is the same file, too."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\n')
        with path.open("rb") as file:
            process = embed.start("-", "--output", path, stdin=file)
            assert "is the input" in sentence(process.communicate()[1])
        with path.open("ab") as file:
            process = embed.start(path, stdout=file)
            assert "is the input file" in sentence(process.communicate()[1])
        assert process.returncode == 1
        assert path.read_text() == '{"text": "a"}\n'


class TestNames:
    """Outputs that cannot be written are refused before the model is loaded."""

    def test_refused(self, embed: Command, tmp_path: Path) -> None:
        """A folder, a folder that is missing, a device, a pipe: one sentence each."""
        (tmp_path / "d.npy").mkdir()
        (tmp_path / "full.npy").symlink_to("/dev/full")
        os.mkfifo(tmp_path / "pipe.npy")
        (tmp_path / "file").write_text("")
        for name, message in {
            "d.npy": "is a folder",
            "none/v.npy": "there is no folder",
            "file/v.npy": "there is no folder",
            "full.npy": "no regular file",
            "pipe.npy": "no regular file",
            "/dev/stdout": "unknown format",
            "v": "unknown format",
        }.items():
            done = embed("--output", tmp_path / name, text="a")
            assert done.exit_code == 1
            assert message in done.stderr, name
            assert "Traceback" not in done.stderr
        assert not (tmp_path / "d.npy.part").exists()

    def test_link(self, embed: Command, tmp_path: Path) -> None:
        """A symbolic link stays one, and its file is replaced."""
        (tmp_path / "v.npy").symlink_to(tmp_path / "real.npy")
        assert embed("--output", tmp_path / "v.npy", text="a").exit_code == 0
        assert (tmp_path / "v.npy").is_symlink()
        assert np.load(tmp_path / "real.npy").shape == (1, 32)

    def test_old_file_stays(self, embed: Command, tmp_path: Path) -> None:
        """A run that fails leaves the vectors of the last one."""
        out = tmp_path / "v.npy"
        out.write_bytes(b"old")
        assert embed("--output", out, text="a\n" * 600 + "the " * 200).exit_code == 1
        assert out.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [out]


class TestFull:
    """No room, no reader, no standard output."""

    @pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet"])
    def test_file(self, embed: Command, tmp_path: Path, suffix: str) -> None:
        """A file that may not grow is one sentence, and no part of it is left."""
        path, out = tmp_path / "a.txt", tmp_path / f"v.{suffix}"
        path.write_text(LINES)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        process = embed.start(path, "--output", out, preexec_fn=limit)
        assert "File too large" in sentence(process.communicate()[1])
        assert process.returncode == 1
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("lines", ["a\n", LINES])
    def test_standard_output(self, embed: Command, tmp_path: Path, lines: str) -> None:
        """A full device behind standard output, with few vectors and with many."""
        path = tmp_path / "a.txt"
        path.write_text(lines)
        with Path("/dev/full").open("wb") as full:
            process = embed.start(path, stdout=full)
            assert "No space left" in sentence(process.communicate()[1])
        assert process.returncode == 1

    @pytest.mark.parametrize("flags", [(), ("--compare", "int8")])
    def test_closed(self, embed: Command, tmp_path: Path, flags: tuple[str, ...]) -> None:
        """Standard output that the shell closed."""
        path = tmp_path / "a.txt"
        path.write_text("a\n")
        command = [sys.executable, "-m", "matryo", "embed", embed.model.id, str(path), *flags]
        done = subprocess.run(
            ["sh", "-c", '"$@" >&-', "sh", *command],
            env=os.environ | embed.env,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1
        assert "standard output is closed" in sentence(done.stderr)

    def test_reader_gone(self, embed: Command, tmp_path: Path) -> None:
        """`| head`: quiet, and the status of a program that SIGPIPE ended."""
        path = tmp_path / "a.txt"
        path.write_text(LINES)
        process = embed.start(path, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["index"] == 0
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 141

    def test_comparison(self, embed: Command) -> None:
        """A report that cannot be written is a failure, too."""
        with Path("/dev/full").open("wb") as full:
            process = embed.start("--compare", "int8", stdout=full)
            assert "No space left" in sentence(process.communicate()[1])
        assert process.returncode == 1


class TestSignals:
    """A signal in the middle ends the command and leaves nothing behind."""

    def waiting(self, embed: Command, tmp_path: Path, **options: Any) -> subprocess.Popen[bytes]:
        """The command, which waits for more texts and has begun its output."""
        out = tmp_path / "v.jsonl"
        process = embed.start("-", "--output", out, stdin=subprocess.PIPE, **options)
        assert process.stdin
        process.stdin.write(LINES.encode())
        process.stdin.flush()
        wait_until((tmp_path / "v.jsonl.part").exists, 30)
        return process

    @pytest.mark.parametrize(
        ("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]
    )
    def test_stopped(self, embed: Command, tmp_path: Path, name: str, status: int) -> None:
        """One sentence, a status of its own, no part."""
        process = self.waiting(embed, tmp_path)
        process.send_signal(signal.Signals[name])
        lines = process.communicate()[1].decode().splitlines()
        assert lines[1:] == [f"matryo: stopped by {name}"]
        assert process.returncode == status
        assert list(tmp_path.iterdir()) == []

    def test_ignored(self, embed: Command, tmp_path: Path) -> None:
        """A signal that the parent ignores, as `nohup` does, stops nothing."""

        def ignore() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        process = self.waiting(embed, tmp_path, preexec_fn=ignore)
        process.send_signal(signal.SIGHUP)
        process.communicate()
        assert process.returncode == 0
        assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 700
