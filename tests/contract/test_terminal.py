"""Commands on a terminal, as their user sees them; piped, they say what they always said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny
from tests.standins import COMMIT, hub_files, serving
from tests.terminal import Terminal, start_on_terminal

pytestmark = pytest.mark.timeout(300)  # processes that load a model, on a busy machine

HIDE_CURSOR = "\x1b[?25l"
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-7]|38;|9[0-7])[\d;]*m")

# Bars and a step in threads, as a model is loaded, and a main thread that waits.
DRAWING = """
import threading, time
import click
from matryo.cli.group import Commands
from matryo.core.progress import TerminalReporter

def work():
    reporter = TerminalReporter()
    with reporter.bar("2 files", 1000) as advance, reporter.bar("one of them", 500) as other:
        for _ in range(10000):
            advance(1), other(1)
            time.sleep(0.02)

def load():
    with TerminalReporter().step("loading"):
        time.sleep(100)

class Program(Commands):
    def get_command(self, ctx, cmd_name):
        def run():
            for one in (work, load):
                threading.Thread(target=one, daemon=True).start()
            time.sleep(100)
        return click.Command("run", callback=run)

Program("program")(["run"])
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny model with a checkpoint, built in fp32."""
    root = tmp_path_factory.mktemp("tiny")
    model = make_model(root, "bert")
    build_tiny(root, model)
    return model


@pytest.fixture(scope="module")
def env(tiny: TinyModel) -> dict[str, str]:
    """The variables that name its store."""
    return {
        "MATRYO_HOME": str(tiny.models.parent / "home"),
        "MATRYO_MODELS": str(tiny.models),
        "MATRYO_MODEL": tiny.id,
        "MATRYO_THREADS": "1",
        "MATRYO_WORKERS": "1",
    }


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of 2000 texts."""
    path = tmp_path / "texts.txt"
    path.write_text("the sky is blue\n" * 2000)
    return path


Start = Callable[..., Terminal]


@pytest.fixture
def start(env: dict[str, str]) -> Iterator[Start]:
    """Starts commands on a terminal; all are ended after the test."""
    with ExitStack() as stack:

        def begin(
            *command: str, variables: dict[str, str] | None = None, **more: object
        ) -> Terminal:
            terminal = start_on_terminal(command, env | (variables or {}), **more)  # pyright: ignore[reportArgumentType]
            stack.enter_context(terminal.process)
            stack.callback(terminal.process.kill)
            return terminal

        yield begin


def piped(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """A command whose streams are pipes."""
    return subprocess.run(
        [sys.executable, "-m", "matryo", *command],
        env=os.environ | env | {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
        capture_output=True,
        text=True,
        check=False,
    )


class TestBars:
    """What long commands draw on standard error."""

    @pytest.mark.parametrize("columns", [0, 12, 40, 80, 200])
    def test_embed(
        self, start: Start, texts: Path, tmp_path: Path, tiny: TinyModel, columns: int
    ) -> None:
        """One line stays, and fits; the cursor was never hidden, so that a kill leaves it there."""
        output = tmp_path / "v.npy"
        terminal = start("embed", tiny.id, str(texts), "--output", str(output), columns=columns)
        assert terminal.finish() == 0
        (line,) = terminal.screen
        assert "100 %" in line
        assert len(line) < terminal.columns
        assert HIDE_CURSOR not in terminal.text
        if terminal.columns >= 80:
            assert "2,000/2,000 texts" in line
            assert "tok/s" in line

    def test_output_is_piped(self, start: Start, texts: Path, tiny: TinyModel) -> None:
        """The bar is on the terminal, the rows go to the pipe, whole and alone."""
        terminal = start("embed", tiny.id, str(texts))
        assert terminal.process.stdout
        rows = terminal.process.stdout.read().splitlines()
        assert terminal.finish() == 0
        assert len(list(map(json.loads, rows))) == 2000
        assert "2,000/2,000 texts" in terminal.screen[-1]

    def test_output_on_the_terminal(self, start: Start, tmp_path: Path, tiny: TinyModel) -> None:
        """Where the rows are on the screen, no bar is drawn into them."""
        path = tmp_path / "two.txt"
        path.write_text("one\ntwo\n")
        terminal = start("embed", tiny.id, str(path), streams="all", columns=100)
        assert terminal.finish() == 0
        assert "embedding  " not in terminal.text
        assert terminal.text.count('"embedding"') + terminal.text.count('"index"') >= 2

    @pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
    def test_plain(
        self, start: Start, texts: Path, tmp_path: Path, tiny: TinyModel, name: str
    ) -> None:
        """NO_COLOR leaves a bar without colours; a dumb terminal gets no control at all."""
        output = str(tmp_path / "v.npy")
        value = "1" if name == "NO_COLOR" else "dumb"
        terminal = start("embed", tiny.id, str(texts), "--output", output, variables={name: value})
        assert terminal.finish() == 0
        assert not COLOUR.search(terminal.text)
        if name == "NO_COLOR":
            assert "100 %" in terminal.screen[-1]
        else:
            assert terminal.text == ""

    def test_batch(self, start: Start, tmp_path: Path, tiny: TinyModel) -> None:
        """The check's bar goes, the count of the lines stays, and so does the last sentence."""
        line = {"custom_id": "", "method": "POST", "url": "/v1/embeddings"}
        body = {"model": tiny.id, "input": "the sky"}
        requests = tmp_path / "in.jsonl"
        requests.write_text(
            "".join(
                json.dumps(line | {"custom_id": f"{n}", "body": body}) + "\n" for n in range(40)
            )
        )
        terminal = start("batch", str(requests), str(tmp_path / "out.jsonl"))
        assert terminal.finish() == 0
        assert "checking" in terminal.text
        bar, sentence = terminal.screen
        assert re.match(r"embedding +\S+ +100 %  40/40 lines", bar)
        assert sentence.startswith("40 of 40 lines completed")

    def test_build(self, start: Start, tiny: TinyModel, tmp_path: Path) -> None:
        """A build names its steps while they last; what stays are the sentences it always said."""
        home = {"MATRYO_HOME": str(tmp_path / "home")}
        command = ("build", tiny.id, "--checkpoint", str(tiny.checkpoint), "--unverified")
        terminal = start(*command, variables=home, columns=200)
        assert terminal.finish() == 0
        for step in ("reading the weights", "writing the graph", "checking the graph"):
            assert step in terminal.text
        again = {"MATRYO_HOME": str(tmp_path / "again")}
        said = piped({"MATRYO_MODELS": str(tiny.models)} | again, *command).stderr
        assert "\x1b" not in said
        assert [line.replace("/home/", "/again/") for line in terminal.screen] == said.splitlines()

    def test_resize(self, start: Start, tmp_path: Path, tiny: TinyModel) -> None:
        """After the terminal became narrower, lines fit the new width."""
        path = tmp_path / "many.txt"
        path.write_text("the sky is blue, and so is the sea, far out\n" * 60_000)
        terminal = start("embed", tiny.id, str(path), "--output", str(tmp_path / "v.npy"))
        terminal.read_until(lambda text: "embedding" in text)
        terminal.resize(30)
        before = len(terminal.text)
        terminal.read_until(lambda text: text.count("\x1b[2K", before) > 3)
        terminal.process.terminate()
        terminal.finish()
        drawn = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", terminal.text[before:])
        frames = [frame for frame in re.split(r"[\r\n]+", drawn) if "embedding" in frame]
        assert max(map(len, frames[1:])) < 30


class TestInterrupted:
    """Ctrl-C in the middle."""

    def test_embed(self, start: Start, tmp_path: Path, tiny: TinyModel) -> None:
        """The bar stops where it is, the sentence stands on a line of its own."""
        path = tmp_path / "many.txt"
        path.write_text("the sky is blue\n" * 400_000)
        terminal = start(
            "embed", tiny.id, str(path), "--output", str(tmp_path / "v.npy"), streams="all"
        )
        terminal.read_until(lambda text: "tok/s" in text)
        terminal.press(b"\x03")
        assert terminal.finish() == 128 + signal.SIGINT
        assert "400,000 texts" in terminal.screen[-2]
        assert terminal.screen[-1] == "matryo: stopped by SIGINT"
        assert HIDE_CURSOR not in terminal.text

    def test_pull(self, start: Start, tmp_path: Path) -> None:
        """A bar for each file and one for all; Ctrl-C erases both, and the next pull resumes."""
        source = f'[[sources]]\nkind = "hub"\nrepo = "acme/tiny"\nrevision = "{COMMIT}"'
        model = make_model(tmp_path, "bert", sources=source, ballast_bytes=4_000_000)
        toml = model.models / model.id / "model.toml"
        text = toml.read_text()
        for name in ("model.safetensors", "tokenizer.json"):
            n_bytes = (model.checkpoint / name).stat().st_size
            text = re.sub(rf'("{name}" = {{ sha256 = "\w+")', rf"\1, bytes = {n_bytes}", text)
        toml.write_text(text)
        with serving() as hub:
            names = ("model.safetensors", "tokenizer.json")
            hub.files = hub_files("acme/tiny", model.checkpoint, names)
            hub.hold_after = 3_000_000
            variables = {
                "MATRYO_HOME": str(tmp_path / "home"),
                "MATRYO_MODELS": str(model.models),
                "HF_ENDPOINT": hub.url,
                "HF_HUB_OFFLINE": "0",
                "HF_HOME": str(tmp_path / "hf"),
            }
            terminal = start("pull", model.id, streams="all", variables=variables, columns=100)
            terminal.read_until(lambda text: re.search("3.[0-9]/4.[0-9] MB", text) is not None)
            terminal.press(b"\x03")
            assert terminal.finish() == 128 + signal.SIGINT
            assert "2 files" in terminal.text
            assert "MB/s" in terminal.text
            assert " left" in terminal.text
            assert [line for line in terminal.screen if line.strip("^C")] == [
                "fetching model.safetensors of acme/tiny from the hub",
                "matryo: stopped by SIGINT",
            ]
            hub.release.set()
            hub.hold_after = None
            terminal = start("pull", model.id, streams="all", variables=variables, columns=200)
            assert terminal.finish() == 0
            path = f"/acme/tiny/resolve/{COMMIT}/model.safetensors"
            assert hub.ranges(path)[-1].startswith("bytes=")
            assert "complete and verified" in terminal.screen[-1]
            assert len(terminal.screen) == 3

    def test_drawn_by_threads(self, start: Start) -> None:
        """What other threads draw is erased before the last word."""
        terminal = start(code=DRAWING, streams="all")
        terminal.read_until(lambda text: "loading" in text and "one of them" in text)
        time.sleep(0.3)
        terminal.press(b"\x03")
        assert terminal.finish() == 128 + signal.SIGINT
        assert [line for line in terminal.screen if line.strip("^C")] == [
            "matryo: stopped by SIGINT"
        ]


class TestModels:
    """`matryo models`."""

    @pytest.mark.parametrize("columns", [30, 60, 80, 160])
    def test_table(self, start: Start, columns: int) -> None:
        """The table fits, and says in a word what is ready."""
        terminal = start("models", streams="out", columns=columns)
        assert terminal.finish() == 0
        assert (
            max(map(len, re.sub(r"\x1b\[[\d;]*m", "", terminal.text).split("\r\n")[:-2])) <= columns
        )
        assert COLOUR.search(terminal.text)
        names = [
            "model",
            "state",
            "dims",
            "tokens",
            "built",
            "disk",
            "checkpoint",
            "kind",
            "verified",
        ]
        if columns >= 60:
            assert terminal.screen[0].split() == [name for name in names if name in terminal.text]
            (row,) = [line for line in terminal.screen if line.startswith("tiny ")]
            assert row.split()[:2] == ["tiny", "ready"]
            assert re.search(r"^bge-m3 +to fetch", "\n".join(terminal.screen), re.MULTILINE)
        assert ("checkpoint" in terminal.text) == (columns >= 160)

    def test_no_colour(self, start: Start) -> None:
        """NO_COLOR leaves the word."""
        terminal = start("models", streams="out", variables={"NO_COLOR": "1"})
        assert terminal.finish() == 0
        assert not COLOUR.search(terminal.text)
        assert re.search(r"tiny.* ready", re.sub(r"\x1b\[[\d;]*m", "", terminal.text))

    def test_dumb(self, start: Start, env: dict[str, str]) -> None:
        """A dumb terminal gets what a pipe gets."""
        terminal = start("models", streams="out", variables={"TERM": "dumb"}, columns=200)
        assert terminal.finish() == 0
        assert terminal.text.replace("\r\n", "\n") == piped(env, "models").stdout

    def test_piped(self, env: dict[str, str]) -> None:
        """A pipe gets the columns that scripts read, and no control character, whatever is asked."""
        said = piped(env, "models").stdout
        assert said.isascii()
        assert "\x1b" not in said
        head = "MODEL KIND DIMS TOKENS CHECKPOINT DISK VERIFIED ARTEFACTS"
        assert said.splitlines()[0].split() == head.split()

    def test_json(self, env: dict[str, str], tiny: TinyModel) -> None:
        """A program gets one object, with what the table says."""
        found = json.loads(piped(env, "models", "--json").stdout)
        assert found["serves"] == [tiny.id]
        assert found["broken"] == []
        models = {model["id"]: model for model in found["models"]}
        one = models[tiny.id]
        assert (one["kind"], one["state"], one["dimensions"]) == ("own", "ready", 32)
        (built,) = one["built"]
        assert built["fingerprint"].startswith(f"{tiny.id}/fp32/")
        assert models["bge-m3"]["state"] == "to fetch"
        assert models["bge-m3"]["built"] == []
        others = json.loads(piped(env | {"MATRYO_PRECISION": "int8"}, "models", "--json").stdout)
        states = {model["id"]: model["state"] for model in others["models"]}
        assert states[tiny.id] in {"to fetch", "to build"}


class TestServe:
    """`matryo serve`."""

    @pytest.mark.parametrize("columns", [0, 60, 120])
    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_panel(self, start: Start, columns: int, processes: str, tiny: TinyModel) -> None:
        """Once ready: what is served and where, once; and a command that answers when it is pasted."""
        terminal = start(
            *("serve", "--port", "0", "--processes", processes),
            streams="all",
            columns=columns,
            variables={"MATRYO_METRICS_PORT": "0", "MATRYO_PAGE": str(columns != 120).lower()},
        )
        text = terminal.read_until(lambda text: re.search(r"\ncurl .*\r\n", text) is not None)
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert plain.count("is ready ─") == 1
        assert len(re.findall(r"ready: .* on http://", plain)) == 1
        for name in ("model", "fingerprint", "address", "metrics", "threads", "keys"):
            assert len(re.findall(rf"│ {name} ", plain)) == 1, name
        assert ("│ page " in plain) == (columns != 120)
        assert f"{tiny.id}, fp32, 32 dimensions" in plain
        (call,) = re.findall(r"\n(curl .*)\r\n", plain)
        done = subprocess.run(call, shell=True, capture_output=True, check=True)  # noqa: S602
        assert len(json.loads(done.stdout)["data"][0]["embedding"]) == 32
        assert (f"{re.findall(r'http://[^/]+', call)[0]}/ " in plain) == (columns != 120)
        (panel,) = re.findall(r"╭.*╯", plain, re.DOTALL)
        assert {len(line) for line in panel.split("\r\n")} == {min(terminal.columns, 100)}
        terminal.press(b"\x03")
        assert terminal.finish() == 0
        assert HIDE_CURSOR not in terminal.text

    def test_facts(self, start: Start, tmp_path: Path) -> None:
        """Keys; and a Unix socket, whose page has no address that a browser opens."""
        variables = {"MATRYO_API_KEYS": "sk-test", "NO_COLOR": "1"}
        path = tmp_path / "s.sock"
        terminal = start(
            "serve", "--uds", str(path), streams="all", variables=variables, columns=200
        )
        text = terminal.read_until(lambda text: re.search(r"\ncurl .*\r\n", text) is not None)
        assert not COLOUR.search(text)
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        whole = re.sub(r" *│\r\n│ {2,}", " ", plain)  # a long path has a line of its own
        assert f"│ address      Unix socket {path}" in whole
        assert "│ page" not in plain
        assert "asked of every caller" in plain
        assert "sk-test" not in plain
        assert (
            f"curl --unix-socket {path} http://localhost/v1/embeddings -H 'Authorization" in plain
        )
        terminal.press(b"\x03")
        assert terminal.finish() == 0

    @pytest.mark.parametrize(
        "variables",
        [{"MATRYO_LOG_FORMAT": "json"}, {"TERM": "dumb"}, {"MATRYO_LOG_LEVEL": "warning"}],
        ids=["json", "dumb", "warning"],
    )
    def test_no_panel(self, start: Start, tmp_path: Path, variables: dict[str, str]) -> None:
        """JSON lines stay JSON lines on a terminal; a dumb one gets lines; a quiet log is quiet."""
        socket = tmp_path / "s.sock"
        terminal = start("serve", "--uds", str(socket), streams="err", variables=variables)
        if "MATRYO_LOG_LEVEL" in variables:
            asked = [sys.executable, "-m", "matryo", "health", "--uds", str(socket)]
            while subprocess.run(asked, capture_output=True, check=False).returncode:
                assert terminal.process.poll() is None
        else:
            terminal.read_until(lambda text: "try: curl" in text and text.endswith("\n"))
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.finish() == 0
        assert "\x1b" not in terminal.text
        assert "─" not in terminal.text
        if "MATRYO_LOG_FORMAT" in variables:
            assert len(list(map(json.loads, terminal.text.splitlines()))) >= 2
        if "MATRYO_LOG_LEVEL" in variables:
            assert terminal.text == ""

    def test_text_in_a_pipe(self, env: dict[str, str]) -> None:
        """Text lines in a pipe are those of before, and the library that draws is not loaded."""
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "matryo", "serve", "--port", "0"],
            env=os.environ | env | {"MATRYO_LOG_FORMAT": "text"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        lines: list[str] = []
        with process:
            for line in process.stderr:
                lines.append(line)
                if "try: curl" in line:
                    break
            process.terminate()
            lines += process.stderr
        said = [line.split(" ", 1)[1] for line in lines if not line.startswith("import time:")]
        assert re.fullmatch(r"INFO    ready: tiny \(fp32\) on http://127.0.0.1:\d+\n", said[0])
        assert said[1].startswith("INFO    try: curl http://127.0.0.1:")
        assert not [line for line in lines if re.search(r"\| +rich\b", line)]
