"""`matryo batch`: the lines of the Batch API without a server, and what is left of it after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result

from matryo.cli import main
from tests.contract.conftest import Live
from tests.unit.commands.conftest import Command

WORDS = ("blue", "green", "grass", "x", "y z", "the sky")


def lines(n: int, **body: Any) -> list[dict[str, Any]]:
    """Requests of one text each."""
    return [
        {
            "custom_id": f"r{index}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"input": f"the sky is {WORDS[index % 6]} {index}"} | body,
        }
        for index in range(n)
    ]


def written(path: Path, requests: Sequence[dict[str, Any]]) -> Path:
    """A file of requests."""
    path.write_text("".join(json.dumps(one) + "\n" for one in requests))
    return path


def run(embed: Command, *flags: object, text: str | bytes | None = None, **env: str) -> Result:
    """Run the command in this process."""
    variables = embed.env | {"MATRYO_MODEL": embed.model.id} | env
    return CliRunner().invoke(main, ["batch", *map(str, flags)], env=variables, input=text)


def results(path: Path) -> dict[str, dict[str, Any]]:
    """The result lines by their custom_id, each of which comes once."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of eight texts."""
    monkeypatch.setattr("matryo.batch.windows.MAX_INPUTS", 8)


class TestAnswers:
    """What is written, and where."""

    def test_the_bodies_of_the_server(self, embed: Command, live: Live, tmp_path: Path) -> None:
        """Every body is what a server of the same model answers, byte for byte."""
        requests = lines(20) + [
            {**one, "custom_id": f"b{n}"}
            for n, one in enumerate(lines(9, encoding_format="base64", dimensions=16))
        ]
        requests.append({**lines(1, dimensions=0)[0], "custom_id": "bad"})
        source, out = written(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl"
        done = run(embed, source, out)
        assert done.exit_code == 3, done.stderr
        assert "29 of 30 lines completed" in done.stderr
        assert "1 lines failed" in done.stderr
        raw = {json.loads(line)["custom_id"]: line for line in out.read_bytes().splitlines()}
        for request in requests:
            response = httpx2.post(
                f"http://127.0.0.1:{live.port}/v1/embeddings", json=request["body"]
            )
            assert response.content in raw[request["custom_id"]]
        assert results(out)["bad"]["response"]["status_code"] == 400
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]

    def test_a_file_of_errors(self, embed: Command, tmp_path: Path) -> None:
        """Lines that failed go to --errors, the others to the output, in order."""
        requests = lines(12)
        for one in requests[3:5]:
            one["body"]["dimensions"] = 0
        source = written(tmp_path / "in.jsonl", requests)
        out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
        assert run(embed, source, out, "--errors", bad).exit_code == 3
        assert list(results(bad)) == ["r3", "r4"]
        assert list(results(out)) == [f"r{n}" for n in range(12) if n not in (3, 4)]

    def test_pipes(self, embed: Command, tmp_path: Path) -> None:
        """From standard input to standard output."""
        text = written(tmp_path / "in.jsonl", lines(20)).read_text()
        done = run(embed, "-", "-", text=text)
        assert done.exit_code == 0, done.stderr
        out = tmp_path / "piped.jsonl"
        out.write_text(done.stdout)
        assert list(results(out)) == [f"r{n}" for n in range(20)]

    def test_the_model_that_the_lines_name(self, embed: Command, tmp_path: Path) -> None:
        """Without a setting, the model is the one that the lines name."""
        source = written(tmp_path / "in.jsonl", lines(2, model=embed.model.id))
        arguments = ["batch", str(source), str(tmp_path / "out.jsonl")]
        done = CliRunner().invoke(main, arguments, env=embed.env)
        assert done.exit_code == 0, done.stderr

    def test_a_model_that_nobody_knows(self, embed: Command, tmp_path: Path) -> None:
        """A model that is not the chosen one ends the run before anything is written."""
        source = written(tmp_path / "in.jsonl", lines(2, model="gpt-9"))
        done = run(embed, source, tmp_path / "out.jsonl")
        assert done.exit_code == 1
        assert "gpt-9" in done.stderr
        assert not (tmp_path / "out.jsonl").exists()

    def test_a_wrong_input(self, embed: Command, tmp_path: Path) -> None:
        """Each wrong line is named, and nothing is written."""
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text(json.dumps(lines(1)[0]) + "\n{\n[]\n")
        done = run(embed, source, out)
        assert done.exit_code == 1
        assert "line 2: This line is not parseable as valid JSON" in done.stderr
        assert "line 3: This line is not a JSON object. (invalid_json_line)" in done.stderr
        assert not out.exists()

    def test_more_lines_than_a_server_takes(self, embed: Command, tmp_path: Path) -> None:
        """The limit of lines is one of servers."""
        source = written(tmp_path / "in.jsonl", lines(30))
        done = run(embed, source, tmp_path / "out.jsonl", MATRYO_BATCH_MAX_LINES="10")
        assert done.exit_code == 0, done.stderr


class TestFiles:
    """Files that cannot be used."""

    def test_no_input(self, embed: Command, tmp_path: Path) -> None:
        """An input that is not there is named."""
        done = run(embed, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
        assert done.exit_code == 1
        assert "none.jsonl: No such file" in done.stderr

    def test_the_input_is_no_output(self, embed: Command, tmp_path: Path) -> None:
        """The input stays as it is where a user names it as an output."""
        source = written(tmp_path / "in.jsonl", lines(2))
        content = source.read_bytes()
        (tmp_path / "link.jsonl").symlink_to(source)
        for flags in ([source], [tmp_path / "link.jsonl"], [tmp_path / "o", "--errors", source]):
            done = run(embed, source, *flags)
            assert done.exit_code == 1
            assert "is the input" in done.stderr
        assert source.read_bytes() == content

    def test_two_names_of_one_file(self, embed: Command, tmp_path: Path) -> None:
        """The file of errors is another one than the output."""
        source, out = written(tmp_path / "in.jsonl", lines(2)), tmp_path / "out.jsonl"
        done = run(embed, source, out, "--errors", out)
        assert (done.exit_code, "leave --errors out" in done.stderr) == (1, True)

    def test_a_folder_that_is_missing(self, embed: Command, tmp_path: Path) -> None:
        """An output in a folder that is not there is refused by name."""
        source = written(tmp_path / "in.jsonl", lines(2))
        done = run(embed, source, tmp_path / "none" / "out.jsonl")
        assert done.exit_code == 1
        assert "out.jsonl: No such file" in done.stderr

    def test_two_runs(self, embed: Command, tmp_path: Path) -> None:
        """An output that another run writes to is refused."""
        source, out = written(tmp_path / "in.jsonl", lines(2)), tmp_path / "out.jsonl"
        with out.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            done = run(embed, source, out)
        assert (done.exit_code, "another run writes" in done.stderr) == (1, True)

    def test_a_full_disk(self, embed: Command, tmp_path: Path) -> None:
        """A disk that is full is named, and the same command goes on once there is room."""
        if not os.access("/dev/full", os.W_OK):
            pytest.fail("this test needs /dev/full")
        source = written(tmp_path / "in.jsonl", lines(2))
        env = os.environ | embed.env | {"MATRYO_MODEL": embed.model.id}
        with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
            done = subprocess.run(
                [sys.executable, "-m", "matryo", "batch", str(source), "-"],
                env=env,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr


class TestGoingOn:
    """What a run that ended early leaves, and what the next one does with it."""

    CHILD = """
import os, signal, sys
import matryo.batch.windows
from matryo.cli import main

matryo.batch.windows.MAX_INPUTS = 8
left = int(sys.argv.pop(1))
sync = os.fsync

def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def fsync(descriptor):
    count()
    sync(descriptor)
    count()

os.fsync = fsync
sys.addaudithook(lambda event, _: count() if event in ("os.rename", "os.remove") else None)
main()
"""

    def child(self, embed: Command, n_steps: int, *flags: object) -> int:
        """Run the command in a process that is killed at a step on the disk; its status."""
        done = subprocess.run(
            [sys.executable, "-c", self.CHILD, str(n_steps), "batch", *map(str, flags)],
            env=os.environ | embed.env | {"MATRYO_MODEL": embed.model.id},
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode in (0, 3, -signal.SIGKILL), done.stderr
        return done.returncode

    @pytest.mark.timeout(600)
    def test_kills(self, embed: Command, tmp_path: Path) -> None:
        """Killed at 20 random steps, the files are those of a run that nobody disturbed."""
        requests = lines(200)
        for one in requests[::9]:
            one["body"]["dimensions"] = 0
        source = written(tmp_path / "in.jsonl", requests)
        whole, whole_bad = tmp_path / "whole.jsonl", tmp_path / "whole_bad.jsonl"
        assert run(embed, source, whole, "--errors", whole_bad).exit_code == 3
        out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
        rng = random.Random(20)
        n_kills = 0
        while n_kills < 20:
            status = self.child(embed, rng.randint(1, 30), source, out, "--errors", bad)
            if status == -signal.SIGKILL:
                n_kills += 1
                for path in (out, bad):  # as if a write had been under way
                    if path.exists() and rng.random() < 0.5:
                        with path.open("ab") as file:
                            file.write(b'{"id":"batch_req_')
            else:
                assert out.read_bytes() == whole.read_bytes()
                assert bad.read_bytes() == whole_bad.read_bytes()
        assert self.child(embed, 0, source, out, "--errors", bad) == 3
        assert out.read_bytes() == whole.read_bytes()
        assert bad.read_bytes() == whole_bad.read_bytes()
        assert not out.with_name("out.jsonl.progress").exists()

    def test_only_the_rest_is_done(self, embed: Command, tmp_path: Path) -> None:
        """The next run says how many lines it does not do again."""
        source, out = written(tmp_path / "in.jsonl", lines(60)), tmp_path / "out.jsonl"
        assert self.child(embed, 20, source, out) == -signal.SIGKILL
        n_done = json.loads(out.with_name("out.jsonl.progress").read_text())["n_completed"]
        assert 0 < n_done < 60
        done = run(embed, source, out)
        assert f"behind {n_done} lines" in done.stderr
        assert "60 of 60 lines completed" in done.stderr
        assert list(results(out)) == [f"r{n}" for n in range(60)]

    def test_progress_that_does_not_fit(self, embed: Command, tmp_path: Path) -> None:
        """Results of another input, model or setting are not mixed; --restart drops them."""
        source, out = written(tmp_path / "in.jsonl", lines(60)), tmp_path / "out.jsonl"
        assert self.child(embed, 20, source, out) == -signal.SIGKILL
        other = written(tmp_path / "other.jsonl", lines(61))
        before = out.read_bytes()
        for flags in ([other, out], [source, out, "--precision", "int8"]):
            done = run(embed, *flags)
            assert done.exit_code == 1
            assert "results of another input, model or setting" in done.stderr
            assert "--restart" in done.stderr
        assert out.read_bytes() == before
        assert run(embed, other, out, "--restart").exit_code == 0
        assert len(results(out)) == 61

    def test_damaged_files(self, embed: Command, tmp_path: Path) -> None:
        """An output that lost bytes, or progress that cannot be read, is refused with the remedy."""
        source, out = written(tmp_path / "in.jsonl", lines(60)), tmp_path / "out.jsonl"
        assert self.child(embed, 20, source, out) == -signal.SIGKILL
        with out.open("r+b") as file:
            file.truncate(10)
        done = run(embed, source, out)
        assert (done.exit_code, "--restart" in done.stderr) == (1, True)
        progress = out.with_name("out.jsonl.progress")
        for content in ("", "[]", '{"input": 1}', '{"x": 1}'):
            progress.write_text(content)
            done = run(embed, source, out)
            assert (done.exit_code, "--restart" in done.stderr) == (1, True)
        assert run(embed, source, out, "--restart").exit_code == 0
        assert len(results(out)) == 60

    def test_interrupted(self, embed: Command, tmp_path: Path) -> None:
        """Ctrl-C ends a run with its status and leaves what the same command goes on from."""
        source, out = written(tmp_path / "in.jsonl", lines(3000)), tmp_path / "out.jsonl"
        code = [sys.executable, "-c", self.CHILD, "0", "batch", str(source), str(out)]
        env = os.environ | embed.env | {"MATRYO_MODEL": embed.model.id}
        with subprocess.Popen(code, env=env, stderr=subprocess.PIPE) as child:
            while not (out.exists() and out.stat().st_size):
                assert child.poll() is None
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate()
        assert child.returncode == 130
        assert b"stopped by SIGINT" in stderr
        assert b"Traceback" not in stderr
        assert run(embed, source, out).exit_code == 0
        assert len(results(out)) == 3000
