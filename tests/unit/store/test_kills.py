"""SIGKILL at steps of pull, build and pack: the next start serves the old weights or the new.

A process of its own loads everything once, and forks a child for each kill.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ZYGOTE = """
import json, os, shutil, sys
from pathlib import Path
from matryo.engine.packing import pack_model
from matryo.build import arch
from matryo.build.provision import build_model, ensure_model, pull_model
from matryo.catalog.reading import read_manifest
from matryo.core.errors import ArtifactMissing
from matryo.core.progress import SILENT
from matryo.store.artifact import find_artifact
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from tests.checkpoints import make_model, random_tensors, save_tensors
from tests.crashes import count_steps, die_at

root, scenario, n_kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = make_model(root, "bert")
own = root / "own"
shutil.copytree(model.checkpoint, own)
save_tensors(random_tensors(model.config, seed=1), own / "model.safetensors")
manifest, home, before = read_manifest(model.models / model.id), root / "home", root / "before"
hashes = {
    sha256_file(folder / "model.safetensors"): name
    for name, folder in (("published", model.checkpoint), ("own", own))
}


def pull():
    pull_model(Store(home), manifest, str(model.checkpoint), SILENT)


def build(folder):
    build_model(Store(home), manifest, "fp32", folder, allow_unverified=True, reporter=SILENT)


def pack():
    pack_model(Store(home), manifest, "fp32", SILENT)


def in_child(work):
    # What work returns, from a child; None if the child was killed.
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else os.WTERMSIG(status)


def served():
    # What the next start finds, and what it serves.
    try:
        found = find_artifact(Store(home), manifest, "fp32")
        found.check_files()
        found = hashes[found.record.checkpoint_sha256]
    except ArtifactMissing:
        found = None
    pull()  # a source for what has to be built; an intact checkpoint is left as it is
    artifact = ensure_model(Store(home), manifest, "fp32", SILENT)
    artifact.check_files()
    names = [path.name for path in home.rglob("*")]
    rubbish = [name for name in names if ".tmp-" in name or name.endswith((".old", ".part"))]
    return [found, hashes[artifact.record.checkpoint_sha256], rubbish]


first, work = {
    "pull": (lambda: None, pull),
    "repair": (
        lambda: (
            pull(),
            next(home.glob("checkpoints/*/*/model.safetensors")).write_bytes(b"rubbish"),
        ),
        pull,
    ),
    "own over nothing": (pull, lambda: build(own)),
    "own over published": (lambda: (pull(), build(model.checkpoint)), lambda: build(own)),
    "published over own": (lambda: (pull(), build(own)), lambda: build(model.checkpoint)),
    "own over damaged own": (
        lambda: (
            pull(),
            build(own),
            next(home.glob("artifacts/*/*/*/model.onnx.data")).write_bytes(b"rubbish"),
        ),
        lambda: build(own),
    ),
    "pack own": (lambda: (pull(), build(own)), pack),
}[scenario]


def do(something):
    something()
    return True


assert in_child(lambda: do(first)) is True
home.mkdir(exist_ok=True)
shutil.copytree(home, before)
n_steps = in_child(lambda: count_steps(home, work))
outcomes = []
for kill in range(n_kills):
    shutil.rmtree(home)
    shutil.copytree(before, home)
    step = kill * n_steps // n_kills
    status = in_child(lambda: do(lambda: die_at(step, home, work)))
    outcomes.append([step, status, *in_child(served)])
print(json.dumps({"steps": n_steps, "outcomes": outcomes}))
"""

KILLS = {"pull": 50, "own over published": 50, "published over own": 50, "pack own": 10}

# What a start may find, and what it may serve, in pairs.
ALLOWED: dict[str, set[tuple[str | None, str]]] = {
    "pull": {(None, "published")},
    "repair": {(None, "published")},
    "own over nothing": {(None, "published"), ("own", "own")},
    "own over published": {("published", "published"), ("own", "own")},
    "published over own": {("own", "own"), ("published", "published")},
    "own over damaged own": {("own", "own")},
    "pack own": {("own", "own")},
}


@pytest.mark.parametrize("scenario", ALLOWED)
def test_kills(tmp_path: Path, scenario: str) -> None:
    """Kills spread over every step leave what was there before, or what was asked for."""
    zygote, n_kills = ZYGOTE, KILLS.get(scenario, 20)
    if scenario == "own over damaged own":  # what is found there is damaged by design
        zygote = zygote.replace("        found.check_files()\n", "")
    done = subprocess.run(
        [sys.executable, "-c", zygote, str(tmp_path), scenario, f"{n_kills}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] > 5
    assert len(result["outcomes"]) == n_kills
    for step, status, found, served, rubbish in result["outcomes"]:
        assert status == 9, step
        assert (found, served) in ALLOWED[scenario], step
        assert rubbish == [], step
