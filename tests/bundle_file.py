"""One bundle, made and run: `make integration` runs this module.

    .venv/bin/python -m tests.bundle_file [FOLDER]

Runs docs/encoderfile.md from its first command to its last, with a tiny model under the name of the
page's. Then the file runs without this Python in an empty environment. As root, and with util-linux,
it also runs in a closed root (`tests.closed_root`), on a full disk, and on a disk that runs no
programs. Each flipped bit of the list must keep the file from serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import requests
from mcp import Client, StdioServerParameters

from matryo.store.bundle import read_bundle
from tests import closed_root
from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.encoderfile_page import MODEL, read_page

_START_S = 60.0
_TEXT = closed_root.TEXTS[0]
_SIZE = 16


def main() -> None:
    """Make a bundle, and check what it does."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="matryo-bundle-"))
    model = make_model(root, "nomic_bert", model_id=MODEL, layer_norm=True, prompts=True)
    build_tiny(root, model, "int8")
    store = {
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_KERNELS": "onnxruntime",  # which the model above was built for
    }
    _run_page(root, store)
    file = root / "nomic"

    matryo = [sys.executable, "-m", "matryo", "embed", MODEL, "--precision", "int8"]
    expected = _embed([*matryo, "--dimensions", str(_SIZE)], os.environ | store)
    cache = {"MATRYO_HOME": str(root / "cache")}
    started = time.perf_counter()
    assert _embed([str(file), "embed"], cache) == expected, "other bits"
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    renamed = file.rename(root / "another name")
    assert _embed([str(renamed), "embed"], cache) == expected, "other bits"
    _report(f"first start {first_s:.2f} s, second start {time.perf_counter() - started:.2f} s")
    file = renamed.rename(file)

    for arguments, said in (
        (["info"], "every byte is what was written"),
        (["verify"], "passed"),
        (["models"], MODEL),
        (["embed", "--help"], "[OPTIONS] [ID] [INPUT]..."),
        (["bundle", MODEL, "--output", "x"], "has no command 'bundle'"),
        (["serve", "--precision", "fp32"], "was made with 'int8'"),
        (["serve", "--model", "other"], f"was made with '{MODEL}'"),
        (["embed", "--dimensions", "8"], f"This server gives {_SIZE} only"),
    ):
        assert said in _say([str(file), *arguments], cache), arguments
    _serve(file, cache)
    asyncio.run(_mcp(file, cache))
    _flip(file, cache, root / "flipped", expected)
    if os.geteuid() == 0 and shutil.which("unshare"):
        _in_a_closed_root(file, root)
        _noexec(file, root)
        _full_disk(file, root)
    else:
        _report("not root, or no util-linux: no closed root, no full disk, no noexec")
    if len(sys.argv) == 1:
        shutil.rmtree(root)
    _report("passed")


def _run_page(root: Path, store: dict[str, str]) -> None:
    """Run the blocks of docs/encoderfile.md in their order; the first one makes the file."""
    port, grpc_port = _free_port(), _free_port()
    user = {"HOME": str(root / "user")}
    with contextlib.ExitStack() as end:
        for number, block in enumerate(read_page()):
            here = block.at(port, grpc_port, _SIZE)
            if here.serves:
                command = shlex.split(here.text)
                end.enter_context(_server([str(root / command[0]), *command[1:]], user))
                continue
            # Only the first block has the store.
            printed = here.run(root, user if number else store)
            if here.needs_server:
                sizes = f"[{_SIZE}, {_SIZE}]" in printed
                assert sizes or printed.count('"embedding":') == 2, printed
    for name, count in (("vectors", 2), ("offline", 1)):
        lines = (root / f"{name}.jsonl").read_text().splitlines()
        assert [len(json.loads(line)["embedding"]) for line in lines] == [_SIZE] * count
    assert np.load(root / "vectors.npy").shape == (1, _SIZE)
    _report("docs/encoderfile.md runs")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def _server(command: list[str], env: dict[str, str]) -> Generator[None, None, None]:
    """A server, from when it is ready until the block ends; it must end in order."""
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said, until = "", time.monotonic() + _START_S
        while '"ready: ' not in (line := server.stderr.readline()):
            assert line, f"the server ended: {said}"
            assert time.monotonic() < until, f"the server is not ready: {said}"
            said += line
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
    assert server.returncode == 0, server.returncode


def _report(sentence: str) -> None:
    print(sentence, flush=True)  # noqa: T201 - a program's output


def _embed(command: list[str], env: dict[str, str]) -> list[float]:
    done = subprocess.run(
        command, input=f"{_TEXT}\n", env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)["embedding"]


def _say(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        command, input=_TEXT, env=env, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def _serve(file: Path, env: dict[str, str]) -> None:
    """The server answers, and refuses what is locked; two processes do, and a deleted file does."""
    gone = file.with_name("gone")
    for processes, delete in (("1", False), ("2", False), ("1", True)):
        port = str(_free_port())
        shutil.copy(file, gone)
        command = [str(gone), "serve", "--port", port, "--processes", processes]
        with _server(command, env):
            if delete:
                gone.unlink()
            url = f"http://127.0.0.1:{port}/v1/embeddings"
            answer = requests.post(url, json={"input": _TEXT}, timeout=_START_S)
            assert len(answer.json()["data"][0]["embedding"]) == _SIZE
            answer = requests.post(url, json={"input": "", "dimensions": 8}, timeout=_START_S)
            assert answer.status_code == 400, answer.text
            for path in ("", "page/app.js"):
                page = requests.get(f"http://127.0.0.1:{port}/{path}", timeout=_START_S)
                assert page.status_code == 200, path


async def _mcp(file: Path, env: dict[str, str]) -> None:
    """The tools for assistants answer over standard input and output."""
    async with Client(StdioServerParameters(command=str(file), args=["mcp"], env=env)) as client:
        texts = ["Cats purr.", _TEXT]
        result = await client.call_tool("rank", {"query": _TEXT, "texts": texts})
    assert result.structured_content, result
    assert [found["index"] for found in result.structured_content["results"]] == [1, 0], result


def _flip(file: Path, env: dict[str, str], changed: Path, expected: list[float]) -> None:
    """A flipped bit in any part keeps the file from embedding, its code unpacked before or not.

    What the damaged file left in the cache changes no vector of the intact file.
    """
    shutil.copy(file, changed)
    parts = read_bundle(file).index.parts
    places = [part.offset + part.bytes // 2 for part in parts]
    places += [part.offset + part.bytes - 1 for part in parts]
    places += [file.stat().st_size - 1, file.stat().st_size - 150]
    with changed.open("r+b") as writer:
        for place in places:
            for flip in (True, False):  # and back
                writer.seek(place)
                byte = writer.read(1)[0]
                writer.seek(place)
                writer.write(bytes([byte ^ 4]))
                writer.flush()
                if flip:
                    # The kernel runs no file that is open for writing.
                    shutil.copy(changed, changed.with_suffix(".run"))
                    for home in (env["MATRYO_HOME"], f"{changed}-{place}"):
                        said = _say(
                            [str(changed.with_suffix(".run")), "embed"], {"MATRYO_HOME": home}
                        )
                        assert '"embedding"' not in said, f"the flip at {place} was not found"
                    used = {"MATRYO_HOME": f"{changed}-{place}"}
                    assert _embed([str(file), "embed"], used) == expected, place
                    shutil.rmtree(used["MATRYO_HOME"])


def _in_a_closed_root(file: Path, root: Path) -> None:
    """The file runs where nothing is but glibc, and gives the same bits by every way in."""
    closed = root / "closed"
    (code,) = (root / "cache" / "bundles").glob("*/matryo")
    closed_root.make_root(closed, code.parent)
    command = ["unshare", "-mn", sys.executable, "-m", "tests.closed_root", str(file), str(closed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    assert len(set(found.values())) == 1, f"other bits by {list(found)}"
    n_files = sum(path.is_file() for path in closed.rglob("*"))
    _report(f"runs in a root of {n_files} files, read-only, without a network")


def _mounted(options: str, file: Path, root: Path) -> str:
    """What a first start says with its cache on a tmpfs of these options."""
    folder = root / "mounted"
    folder.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o {options} tmpfs {folder} && MATRYO_HOME={folder} {file} info"
    return _say(["unshare", "-m", "sh", "-c", script], dict(os.environ))


def _noexec(file: Path, root: Path) -> None:
    """Where no program may run, the file says so."""
    said = _mounted("noexec", file, root)
    assert "programs may not run there (noexec)" in said, said


def _full_disk(file: Path, root: Path) -> None:
    """Where the code has no room, the file says how much room it needs."""
    said = _mounted("size=64m", file, root)
    assert "No space left on device. Set MATRYO_HOME" in said, said
    n_mb = int(said.split("code (")[1].split(" MB")[0])
    assert n_mb > 64, said


if __name__ == "__main__":
    main()
