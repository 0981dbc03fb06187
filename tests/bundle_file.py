"""One bundle, made and run: `make integration` runs this module.

    .venv/bin/python -m tests.bundle_file [FOLDER]

Makes a bundle of a tiny model with the extra `bundle`, and runs the file without this Python, in an
empty environment. As root, and with util-linux, the file also runs without a network. Each flipped
bit of the list must keep the file from serving.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from matryo.store.bundle import read_bundle
from tests.checkpoints import make_model
from tests.conftest import build_tiny

_START_S = 60.0
_TEXT = "The quick brown fox jumps over the lazy dog."


def main() -> None:
    """Make a bundle, and check what it does."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="matryo-bundle-"))
    model = make_model(root, "nomic_bert", layer_norm=True, prompts=True)
    build_tiny(root, model)
    matryo = [sys.executable, "-m", "matryo"]
    store = {"MATRYO_HOME": str(root / "home"), "MATRYO_MODELS": str(model.models)}
    file = root / "tiny-file"
    make = [*matryo, "bundle", model.id, "--dimensions", "16", "--lock", "--output", str(file)]
    subprocess.run(make, env=os.environ | store, check=True)

    expected = _embed([*matryo, "embed", model.id, "--dimensions", "16"], os.environ | store)
    cache = {"MATRYO_HOME": str(root / "cache")}
    offline = ["unshare", "-n"] if os.geteuid() == 0 and shutil.which("unshare") else []
    started = time.perf_counter()
    assert _embed([*offline, str(file), "embed"], cache) == expected, "other bits"
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    renamed = file.rename(root / "another name")
    assert _embed([*offline, str(renamed), "embed"], cache) == expected, "other bits"
    _report(f"first start {first_s:.2f} s, second start {time.perf_counter() - started:.2f} s")
    file = renamed.rename(file)

    for arguments, said in (
        (["info"], "every byte is what was written"),
        (["verify"], "passed"),
        (["models"], "tiny"),
        (["bundle", "tiny", "--output", "x"], "has no command 'bundle'"),
        (["serve", "--precision", "int8"], "was made with 'fp32'"),
        (["embed", "--dimensions", "8"], "This server gives 16 only"),
    ):
        assert said in _say([str(file), *arguments], cache), arguments
    _serve(file, cache)
    _flip(file, cache, root / "flipped")
    _noexec(file, root)
    if len(sys.argv) == 1:
        shutil.rmtree(root)
    _report("passed")


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
    """The server answers, refuses what is locked, and ends in order; two processes too."""
    for processes in ("1", "2"):
        command = [str(file), "serve", "--port", "8977", "--processes", processes]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr
            until = time.monotonic() + _START_S
            while '"ready: ' not in (line := server.stderr.readline()):
                assert line, "the server ended"
                assert time.monotonic() < until, "the server is not ready"
            url = "http://127.0.0.1:8977/v1/embeddings"
            answer = requests.post(url, json={"input": _TEXT}, timeout=_START_S)
            assert len(answer.json()["data"][0]["embedding"]) == 16
            answer = requests.post(url, json={"input": "", "dimensions": 8}, timeout=_START_S)
            assert answer.status_code == 400, answer.text
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
        assert server.returncode == 0, server.returncode


def _flip(file: Path, env: dict[str, str], changed: Path) -> None:
    """A flipped bit in any part keeps the file from embedding, its code unpacked before or not."""
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
                    shutil.rmtree(f"{changed}-{place}", ignore_errors=True)


def _noexec(file: Path, root: Path) -> None:
    """Where no program may run, the file says so."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return
    folder = root / "noexec"
    folder.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o noexec tmpfs {folder} && MATRYO_HOME={folder} {file} info"
    said = _say(["unshare", "-m", "sh", "-c", script], dict(os.environ))
    assert "programs may not run there (noexec)" in said, said


if __name__ == "__main__":
    main()
