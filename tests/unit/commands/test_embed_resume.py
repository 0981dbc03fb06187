"""`matryo embed --resume`: SIGKILL at any moment loses and repeats no row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo.commands.embedding import command
from matryo.commands.embedding.distinct import open_distinct
from matryo.commands.sinks.block import Span
from matryo.core.errors import InvalidRequest, SettingsInvalid
from tests.crashes import Crash, count_steps, crash_at
from tests.fakes import MINILM, FakeEngine
from tests.unit.commands.faked import Chunking, Options, Reading, embed

FORMATS = ("jsonl", "npy", "parquet")

# Loads everything once, and forks a child for each try. Each child goes on where the one before was
# killed: at a step on the disk, or at any moment.
ZYGOTE = """
import os, random, signal, sys, threading, time
from pathlib import Path
import pyarrow, pyarrow.parquet, sqlite3
from matryo.commands.embedding import command
from tests.crashes import count_steps, die_at
from tests.unit.commands.faked import Chunking, Reading, embed

command._COMMIT_S = 0.0
root, name, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
more = {"dedupe": True} if seed % 2 else {}
if name != "v.npy" and seed % 3 == 0:
    more["chunking"] = Chunking(8, 2, "rows")


def work(folder, resume):
    embed([root / "rows.jsonl"], folder / name, resume=resume, **more)


def in_child(do):
    child = os.fork()
    if not child:
        try:
            do()
            os._exit(0)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def count():
    steps = count_steps(root / "whole", lambda: work(root / "whole", False))
    (root / "steps").write_text(str(steps))


def killed_later(delay_s):
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()
    work(root / "killed", True)


started = time.monotonic()
assert in_child(count) == 0
whole_s = time.monotonic() - started
n_steps = int((root / "steps").read_text())
n_kills = 0
for attempt in range(9):
    if attempt == 8:
        end = in_child(lambda: work(root / "killed", True))
    elif attempt % 2 == 0:
        step = chance.randrange(n_steps // 3)
        end = in_child(lambda: die_at(step, root / "killed", lambda: work(root / "killed", True)))
    else:
        delay_s = chance.random() * whole_s / 2
        end = in_child(lambda: killed_later(delay_s))
    if end != signal.SIGKILL:
        assert end == 0, end
        break
    n_kills += 1
print(n_kills)
"""


def rows_file(folder: Path, n_rows: int = 4000) -> Path:
    """Rows of several lengths, some of which are equal."""
    path = folder / "rows.jsonl"
    texts = [f"sky {n % 1500} " + "blue " * (n % 12) for n in range(n_rows)]
    lines = [json.dumps({"text": text, "id": n}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("target", FORMATS)
def test_kills(tmp_path: Path, target: str, seed: int) -> None:
    """Killed and resumed over and over, the output is that of a run from start to end."""
    rows_file(tmp_path)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    command_line = [sys.executable, "-c", ZYGOTE, str(tmp_path), f"v.{target}", str(seed)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 1
    for name in ("whole", "killed"):
        assert [path.name for path in (tmp_path / name).iterdir()] == [f"v.{target}"]
    whole, killed = ((tmp_path / name / f"v.{target}") for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.fixture
def every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note every block at once."""
    monkeypatch.setattr(command, "_COMMIT_S", 0.0)


def stopped(folder: Path, target: str, n_more: int = 14, **more: Any) -> Path:
    """An output whose run was cut off in the middle."""
    out = folder / f"v.{target}"
    with pytest.raises(Crash):
        crash_at(n_more, folder, lambda: embed([folder / "rows.jsonl"], out, resume=True, **more))
    assert json.loads((folder / f"v.{target}.progress").read_text())["done"]["rows"] > 0
    return out


@pytest.mark.usefixtures("every_block")
class TestOtherWork:
    """A run goes on with its own work only."""

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"dtype": "float16"}, "dtype was float32 and is float16"),
            ({"options": Options(dimensions=384, truncate=True)}, "--truncate was not given"),
            ({"reading": Reading(text="text")}, "--column was not given and is text"),
            ({"dedupe": True}, "--dedupe was not given"),
            ({"chunking": Chunking(100)}, "chunk was not given and is 100/0/mean"),
            ({"engine": FakeEngine()}, "model was all-minilm-l6-v2 and is nomic"),
        ],
    )
    def test_refused(self, tmp_path: Path, more: dict[str, Any], words: str) -> None:
        """Another flag or model is refused with both values, and nothing is lost."""
        path = rows_file(tmp_path)
        out = stopped(tmp_path, "jsonl")
        with pytest.raises(SettingsInvalid, match=words):
            embed([path], out, resume=True, **more)
        embed([path], out, resume=True)
        assert len(out.read_text().splitlines()) == 4000

    @pytest.mark.parametrize("row", [0, 3999])
    def test_another_input(self, tmp_path: Path, row: int) -> None:
        """A row that changed, whether done or to come, is refused; a copy of the file is not."""
        path = rows_file(tmp_path)
        out = stopped(tmp_path, "npy")
        lines = path.read_text().splitlines()
        lines[row] = lines[row].replace("sky", "sea")
        (tmp_path / "other.jsonl").write_text("\n".join(lines))
        (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
        with pytest.raises(SettingsInvalid, match="the input was"):
            embed([tmp_path / "other.jsonl"], out, resume=True)
        embed([tmp_path / "copy.jsonl"], out, resume=True)
        assert np.load(out).shape == (4000, 384)

    def test_another_fingerprint(self, tmp_path: Path) -> None:
        """Other weights under the same name are refused."""
        path, engine = rows_file(tmp_path), FakeEngine(MINILM)
        out = stopped(tmp_path, "npy")
        engine.fingerprint += "2"
        with pytest.raises(SettingsInvalid, match="fingerprint was all-minilm"):
            embed([path], out, resume=True, engine=engine)

    def test_damage(self, tmp_path: Path) -> None:
        """A damaged note, and rows that are gone, are refused with the remedy."""
        path = rows_file(tmp_path)
        out = stopped(tmp_path, "jsonl")
        (tmp_path / "v.jsonl.part").write_bytes(b"")
        with pytest.raises(SettingsInvalid, match=r"is shorter than .* Leave --resume out"):
            embed([path], out, resume=True)
        (tmp_path / "v.jsonl.progress").write_text("{}")
        with pytest.raises(SettingsInvalid, match=r"is damaged: .* Leave --resume out"):
            embed([path], out, resume=True)
        embed([path], out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "v.jsonl"]


def test_texts_that_were_not_noted(tmp_path: Path) -> None:
    """Texts that were remembered after the last note are forgotten; missing ones are refused."""
    path, vectors = tmp_path / "texts", np.eye(3, dtype=np.float32)
    spans = [Span(0, 0, 5)]
    with open_distinct(path, 3, 0) as texts:
        for number in range(3):
            assert texts.is_new(bytes([number]))
            texts.remember(bytes([number]), vectors[number : number + 1], spans)
        texts.commit()
    with open_distinct(path, 3, 2) as texts:
        assert [texts.is_new(bytes([number])) for number in range(3)] == [False, False, True]
        found, places = texts.recall(b"\x01")
        assert (found.tolist(), places) == ([[0.0, 1.0, 0.0]], spans)
        texts.remember(b"\x02", vectors[2:], spans)
        texts.commit()
    with (
        pytest.raises(SettingsInvalid, match="has 3 texts, and 4 were remembered"),
        open_distinct(path, 3, 4),
    ):
        pass


@pytest.mark.usefixtures("every_block")
class TestLife:
    """What is left beside an output, and when."""

    def test_only_the_rest_is_computed(self, tmp_path: Path, capsys: Any) -> None:
        """Rows that were done are read and not computed."""
        path, engine = rows_file(tmp_path), FakeEngine(MINILM)
        out = stopped(tmp_path, "npy")
        n_done = json.loads((tmp_path / "v.npy.progress").read_text())["done"]["rows"]
        embed([path], out, resume=True, engine=engine)
        assert f"going on after row {n_done:,}" in capsys.readouterr().err
        assert len([text for text in engine.seen if text.startswith("sky")]) == 4000 - n_done

    def test_error(self, tmp_path: Path) -> None:
        """With --resume, an error leaves what is done; without, nothing."""
        path, out = rows_file(tmp_path), tmp_path / "v.npy"
        with path.open("a") as file:
            file.write(json.dumps({"text": "the " * 600, "id": 0}))
        with pytest.raises(InvalidRequest, match="line 4001 has 602 tokens"):
            embed([path], out, resume=True)
        names = ["rows.jsonl", "v.npy.part", "v.npy.progress"]
        assert sorted(found.name for found in tmp_path.iterdir()) == names
        with pytest.raises(InvalidRequest, match="or --chunk"):
            embed([path], out)
        assert list(tmp_path.iterdir()) == [path]

    def test_last_step(self, tmp_path: Path) -> None:
        """Killed after the output got its name: the next run removes what is beside it."""
        path, out = rows_file(tmp_path, 30), tmp_path / "v.npy"
        n_steps = count_steps(tmp_path, lambda: embed([path], out, resume=True))
        whole = out.read_bytes()
        for step in range(n_steps):
            out.unlink(missing_ok=True)
            with pytest.raises(Crash):
                crash_at(step, tmp_path, lambda: embed([path], out, resume=True))
            embed([path], out, resume=True)
            assert out.read_bytes() == whole
            assert sorted(found.name for found in tmp_path.iterdir()) == ["rows.jsonl", "v.npy"]

    def test_two_at_once(self, tmp_path: Path) -> None:
        """An output that another process writes is refused."""
        import fcntl

        path, out = rows_file(tmp_path, 5), tmp_path / "v.npy"
        with (tmp_path / "v.npy.part").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(SettingsInvalid, match="another process writes it"):
                embed([path], out)
        embed([path], out)
        assert np.load(out).shape == (5, 384)

    def test_pipe(self, tmp_path: Path) -> None:
        """A pipe that gives the same rows again is gone on with; other rows are refused."""
        import os

        path = rows_file(tmp_path)
        content = path.read_text()
        path.unlink()
        os.mkfifo(path)

        def feed(text: str) -> subprocess.Popen[bytes]:
            code = "import sys; text = sys.stdin.read(); open(sys.argv[1], 'w').write(text)"
            feeder = subprocess.Popen(
                [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stderr=-3
            )
            assert feeder.stdin
            feeder.stdin.write(text.encode())
            feeder.stdin.close()
            return feeder

        first = feed(content)
        out = stopped(tmp_path, "npy")
        first.wait()
        second = feed(content.replace("sky 3 ", "sea 3 "))
        with pytest.raises(SettingsInvalid, match="rows of the input are others"):
            embed([path], out, resume=True)
        second.wait()
        third = feed(content)
        embed([path], out, resume=True)
        third.wait()
        assert np.load(out).shape == (4000, 384)
