"""Mutated files of every kind, given to the commands that read them.

    .venv/bin/python -m tests.fuzz_files --count 2000 [--kind gguf] [--seed 0]

A mutation passes if the command succeeds or raises one `MatryoError`, within `SECONDS`, and if the
process never holds `MEMORY_BYTES` more than before. The mutations run in a process of their own. A
mutation that ends that process is a fault; the next one runs in a new process. The same seed always
gives the same files, and `--only INDEX` runs one of them and prints its error.

A build tries a graph or a tokenizer of unknown hash in a process of its own, which takes as long as
twenty mutations. Most mutations do here, in one process, what that trial does. If one of them ends the
process, it runs again with the trial, and passes if the build then ends with one error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import gguf

from matryo.build import arch, inputs
from matryo.build import build as builds
from matryo.build.check import Agreement, check_graph
from matryo.build.provision import build_model, derive_model, pull_model
from matryo.build.tokenizer import TokenizerFile
from matryo.catalog.catalog import Catalog
from matryo.catalog.manifest import Manifest
from matryo.catalog.reading import read_manifest
from matryo.core.errors import MatryoError
from matryo.core.progress import SILENT, TerminalReporter
from matryo.engine.onnx.prepacked import find_prepacked, prepack
from matryo.engine.tokenizer import TextTokenizer
from matryo.store.artifact import find_artifact, unverified_origin
from matryo.store.derived import models_folder
from matryo.store.files import sha256_file
from matryo.store.layout import Store
from matryo.store.references import parse_reference
from tests import mutations
from tests.checkpoints import EXPERTS, TinyModel, make_model, save_gguf
from tests.folders import make_folder
from tests.standins import make_wheel

SECONDS = 30.0
MEMORY_BYTES = 400 << 20
_LIMIT_BYTES = 4 << 30

Check = Callable[[bytes], object]
"""Writes a file and runs a command that reads it."""


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        seeds: whole files of the kind, each with the command that reads it.
        mutate: makes another file of one of them.
    """

    seeds: list[tuple[bytes, Check]]
    mutate: Callable[[bytes, random.Random], bytes]


@dataclass
class Report:
    """The outcome of the mutations of one kind.

    Attributes:
        refused: number of files with an error of ours.
        accepted: number of files that could be used.
        contained: of these, the number of files that only a trial survives.
        faults: of each other file, its index and what went wrong.
    """

    contained: int = 0
    refused: int = 0
    accepted: int = 0
    faults: dict[int, str] = field(default_factory=dict[int, str])


# --- the kinds


def _builder(root: Path, model: TinyModel, path: Path, precision: Any = "fp32") -> Check:
    store, manifest = Store(root / "home"), read_manifest(model.models / model.id)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        given = path.parent if path.name in ("model.safetensors", "tokenizer.json") else path
        artifact = build_model(
            store,
            manifest,
            precision,
            given,
            allow_unverified=True,
            trust_manifest=True,  # a seed may be of another kind than the manifest
            reporter=SILENT,
        )
        tokenizer = TextTokenizer(artifact.tokenizer, manifest.tokenizer.max_tokens)
        tokenizer.encode(["the sky is blue", "", "é" * 40])

    return check


def _gguf(root: Path) -> Kind:
    seeds: list[tuple[bytes, Check]] = []
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, model_type, changes in (("a", "bert", {}), ("b", "nomic_bert", EXPERTS)):
        model = make_model(root / name, model_type, **changes)
        folder = root / name / "own"
        folder.mkdir()
        path = save_gguf(model, folder / "tiny.gguf", *([q8] if changes else []))
        seeds.append(
            (path.read_bytes(), _builder(root / name, model, path, "q8" if changes else "fp32"))
        )
    # Unigram, as XLM-R's.
    model = make_model(root / "c", "bert")
    folder = root / "c/own"
    folder.mkdir()
    path = save_gguf(model, folder / "tiny.gguf", unigram=True)
    seeds.append((path.read_bytes(), _builder(root / "c", model, path)))
    # Beside a tokenizer.json that is held against the file's own vocabulary.
    model = make_model(root / "d", "bert")
    path = save_gguf(model, model.checkpoint / "tiny.gguf")
    seeds.append((path.read_bytes(), _builder(root / "d", model, path)))
    return Kind(seeds, mutations.mutate_gguf)


def _safetensors(root: Path) -> Kind:
    seeds: list[tuple[bytes, Check]] = []
    for name, model_type, precision in (("a", "bert", "fp32"), ("b", "nomic_bert", "int8")):
        model = make_model(root / name, model_type)
        path = model.checkpoint / "model.safetensors"
        seeds.append((path.read_bytes(), _builder(root / name, model, path, precision)))
    return Kind(seeds, mutations.mutate_safetensors)


def _onnx(root: Path) -> Kind:
    from tests.conftest import build_tiny
    from tests.unit.build.test_onnx import export

    model = make_model(root, "bert")
    artifact = build_tiny(root, model)
    folder = root / "own"
    folder.mkdir()
    shutil.copy(model.checkpoint / "tokenizer.json", folder)
    shutil.copy(artifact.folder / "model.onnx.data", folder)
    whole = artifact.graph.read_bytes()
    plain = export(root / "plain.onnx").read_bytes()
    check = _builder(root, model, folder / "model.onnx")
    return Kind([(plain, check), (whole, check)], mutations.mutate_onnx)


def _tokenizer(root: Path) -> Kind:
    model = make_model(root / "a", "bert")
    path = model.checkpoint / "tokenizer.json"
    seeds = [(path.read_bytes(), _builder(root / "a", model, path))]
    other = make_model(root / "b", "bert")
    made = save_gguf(other, root / "b/tiny.gguf", unigram=True)
    from matryo.build.checkpoint.tokenizer import rebuild_from_gguf

    unigram = rebuild_from_gguf(made, root / "b", SILENT).path.read_bytes()
    seeds.append((unigram, _builder(root / "b", other, other.checkpoint / "tokenizer.json")))
    return Kind(seeds, mutations.mutate_json)


def _wheel(root: Path) -> Kind:
    seeds: list[tuple[bytes, Check]] = []
    draft = make_model(root / "draft", "bert")
    wheel = root / "tiny_weights-1.0-py3-none-any.whl"
    make_wheel(wheel, "tiny-weights", draft.checkpoint, "tiny_weights/model")
    source = (
        '[[sources]]\nkind = "pypi"\npackage = "tiny-weights"\nversion = "1.0"\n'
        'folder = "tiny_weights/model"\n'
        f'wheel = {{ sha256 = "{sha256_file(wheel)}" }}'
    )
    model = make_model(root, "bert", sources=source)
    manifest = read_manifest(model.models / model.id)

    def check(content: bytes) -> None:
        wheel.write_bytes(content)
        home = root / "home"
        shutil.rmtree(home, ignore_errors=True)
        pull_model(Store(home), manifest, str(wheel), SILENT)

    seeds.append((wheel.read_bytes(), check))
    return Kind(seeds, mutations.mutate_wheel)


def _facts(root: Path) -> Kind:
    """JSON files beside the weights."""
    from tests.unit.build.test_vocabulary import FACTS

    seeds: list[tuple[bytes, Check]] = []
    model = make_model(root, "bert")
    store, manifest = Store(root / "home"), read_manifest(model.models / model.id)
    (model.checkpoint / "tokenizer.json").write_text(
        (model.checkpoint / "tokenizer.json").read_text() + "\n"
    )

    def writer(name: str) -> Check:
        def check(content: bytes) -> None:
            path = model.checkpoint / name
            path.write_bytes(content)
            try:
                build_model(
                    store,
                    manifest,
                    "fp32",
                    model.checkpoint,
                    allow_unverified=True,
                    reporter=SILENT,
                )
            finally:
                path.unlink()

        return check

    for name, fact in FACTS.items():
        if not isinstance(fact, str):
            seeds.append((json.dumps(fact).encode(), writer(name)))
    return Kind(seeds, mutations.mutate_json)


def _records(root: Path) -> Kind:
    """Files of the store that say what an artefact is."""
    from tests.conftest import build_tiny

    model = make_model(root, "bert")
    store, manifest = Store(root / "home"), read_manifest(model.models / model.id)
    artifact = build_tiny(root, model)
    prepack(artifact)
    (packed,) = artifact.folder.glob("packed-*/packed.json")
    files = [artifact.folder / "artifact.json", artifact.folder.parent / "current", packed]
    whole = {path: path.read_bytes() for path in files}

    def writer(path: Path) -> Check:
        def check(content: bytes) -> None:
            path.write_bytes(content)
            try:
                found = find_artifact(store, manifest, "fp32")
                found.check_files()
                unverified_origin(store, manifest.id, "fp32")
                prepacked = find_prepacked(found)
                if prepacked:
                    prepacked.intact()
            finally:
                path.write_bytes(whole[path])

        return check

    return Kind([(whole[path], writer(path)) for path in files], mutations.mutate_json)


def _manifest(root: Path) -> Kind:
    """`model.toml`, in JSON's values where TOML has the same."""
    model = make_model(root, "bert")
    folder = model.models / model.id
    content = (folder / "model.toml").read_bytes()
    home = Store(root / "home")

    def check(content: bytes) -> None:
        (folder / "model.toml").write_bytes(content)
        manifest = read_manifest(folder)
        build_model(
            home, manifest, "fp32", model.checkpoint, allow_unverified=True, reporter=SILENT
        )

    def mutate(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutations.mutate_bytes(content, rng)
        lines = content.decode().split("\n")
        assigned = [i for i, line in enumerate(lines) if " = " in line]
        for _ in range(rng.randint(1, 2)):
            index = rng.choice(assigned)
            key = lines[index].split(" = ", 1)[0]
            lines[index] = f"{key} = {rng.choice(TOML_VALUES)}"
        return "\n".join(lines).encode()

    return Kind([(content, check)], mutate)


def _derive(root: Path) -> Kind:
    """The files beside the weights that a model is derived from, of folders of several kinds."""
    seeds: list[tuple[bytes, Check]] = []
    for index, model_type in enumerate(FOLDERS):
        dense = [(32, 16, "Tanh")] if model_type == "bert" else []
        changes = EXPERTS if model_type == "nomic_bert" else {}
        _, folder = make_folder(
            root / str(index),
            model_type,
            prompts={"query": "Q: ", "document": "D: "},
            dense=dense,
            more={"truncate_dim": 8, "default_prompt_name": "query"},
            **changes,
        )
        (folder / "README.md").write_text('---\nlicense: mit\n---\n"matryoshka_dims": [32, 16]')
        store = Store(root / str(index) / "home")
        files = [path for path in folder.rglob("*.json") if path.name != "tokenizer.json"]
        seeds += [
            (path.read_bytes(), _deriver(store, folder, path))
            for path in [*sorted(files), folder / "README.md"]
        ]

    def mutate(content: bytes, rng: random.Random) -> bytes:
        is_card = content.startswith(b"---")
        return (mutations.mutate_bytes if is_card else mutations.mutate_json)(content, rng)

    return Kind(seeds, mutate)


FOLDERS = ("bert", "nomic_bert", "xlm_roberta", "modernbert", "new", "qwen3", "model2vec")


def _deriver(store: Store, folder: Path, path: Path) -> Check:
    whole, reference = path.read_bytes(), parse_reference(str(folder))
    assert reference

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            shutil.rmtree(models_folder(store.home), ignore_errors=True)
            made = derive_model(store, Catalog(()), reference, SILENT)
            arch.load(read_manifest(made))
        finally:
            path.write_bytes(whole)

    return check


TOML_VALUES = (
    *(
        "0",
        "-1",
        "1",
        "64",
        "1_000_000_000_000",
        "9" * 5000,
        "0x" + "f" * 9000,
        "inf",
        "nan",
        "1e308",
    ),
    *('""', '"a"', '"\\u0000"', '"../x"', "true", "[]", "[[]]", "[1]", '["a"]', "{}", "{a = 1}"),
    *("[" * 3000, "1979-05-27", "9999-99-99", "{a.b.c = 1}", '"' + "x" * 100_000 + '"'),
)

KINDS: dict[str, Callable[[Path], Kind]] = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "tokenizer": _tokenizer,
    "wheel": _wheel,
    "facts": _facts,
    "records": _records,
    "manifest": _manifest,
    "derive": _derive,
}


# --- the worker


def work(
    kind: str, seed: int, first: int, count: int, *, trial: bool = False, verbose: bool = False
) -> None:
    """Run mutations `first` to `count`, and write a line of JSON for each.

    Args:
        kind: a name of `KINDS`.
        seed: another seed gives other files.
        first: index of the first mutation.
        count: index after the last mutation.
        trial: leave a build's trials in processes of their own, as every command has them.
        verbose: print errors with their origin.
    """
    if not trial:
        inputs.try_tokenizer = _no_trial
        builds.try_graph = _try_graph_here
    warnings.simplefilter("error")
    # ONNX Runtime prints some faults on standard output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    root = Path(tempfile.mkdtemp(prefix="matryo-fuzz-"))
    try:
        made = KINDS[kind](root)
        for content, check in made.seeds:
            check(content)
        before = _peak()
        for index in range(first, count):
            print(json.dumps({"begin": index}), file=answer, flush=True)
            result = _one(made, f"{kind}/{seed}/{index}", verbose=verbose)
            if (grown := _peak() - before) > MEMORY_BYTES:
                result = {"fault": f"{grown >> 20} MiB more memory than before"}
                before = _peak()
            print(json.dumps({"end": index, **result}), file=answer, flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _no_trial(_: Path) -> None:
    """Leave a tokenizer to the build, which reads it in this process."""


def _try_graph_here(graph: Path, n_bytes: int, tokenizer: Path, manifest: Manifest) -> Agreement:
    """What a trial does, in this process."""
    return check_graph(graph, TokenizerFile(tokenizer), None, manifest, "fp32")


def _one(made: Kind, name: str, *, verbose: bool) -> dict[str, object]:
    rng = random.Random(name)
    content, check = rng.choice(made.seeds)
    mutated = made.mutate(content, rng)
    try:
        check(mutated)
    except MatryoError as exc:
        if verbose:
            traceback.print_exc()
        if "MemoryError" in exc.message or isinstance(exc.__cause__, MemoryError):
            return {"fault": f"memory: {exc.message}"}
        if not exc.message.isprintable() and "\n" not in exc.message:
            return {"fault": f"an unprintable message: {exc.message!r}"}
        return {"refused": exc.message}
    except BaseException as exc:
        if verbose:
            traceback.print_exc()
        where = traceback.extract_tb(exc.__traceback__)[-1]
        return {"fault": f"{type(exc).__name__}: {exc!s:.200} ({where.filename}:{where.lineno})"}
    return {}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- the parent


def fuzz(kind: str, count: int, seed: int = 0) -> Report:
    """Run `count` mutations of one kind; see the top of this file."""
    report, first = Report(), 0
    while first < count:
        first = _watch(kind, seed, first, count, report)
    for index in list(report.faults):
        again = Report()
        _watch(kind, seed, index, index + 1, again, trial=True)
        if again.faults:
            report.faults[index] = again.faults[index]
            continue
        del report.faults[index]
        report.refused += again.refused
        report.accepted += again.accepted
        report.contained += 1
    return report


def _watch(
    kind: str, seed: int, first: int, count: int, report: Report, *, trial: bool = False
) -> int:
    """Run a worker until its end; returns the index of the mutation that comes next."""
    flags = ["--kind", kind, "--seed", f"{seed}", "--first", f"{first}", "--count", f"{count}"]
    with (
        tempfile.TemporaryDirectory(prefix="matryo-fuzz-") as folder,
        (Path(folder) / "stderr").open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz_files", "--worker", *flags]
            + (["--trial"] if trial else []),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "TMPDIR": folder},
        ) as worker,
    ):
        lines = cast("IO[str]", worker.stdout)
        running: int | None = None
        end = time.monotonic() + 4 * SECONDS
        late = False
        while True:
            late = not select.select([lines], [], [], max(0.0, end - time.monotonic()))[0]
            line = "" if late else lines.readline()
            if not line:
                break
            said = json.loads(line)
            end = time.monotonic() + SECONDS
            if "begin" in said:
                running = said["begin"]
                continue
            running, first = None, said["end"] + 1
            if "fault" in said:
                report.faults[said["end"]] = said["fault"]
            elif "refused" in said:
                report.refused += 1
            else:
                report.accepted += 1
        if late:
            worker.kill()
        status = worker.wait()
        if first >= count:
            return first
        if running is None:
            said = (Path(folder) / "stderr").read_text(errors="replace")
            raise SystemExit(f"the worker for {kind} ended with {status}: {said[-3000:]}")
        report.faults[running] = f"over {SECONDS:g} s" if late else f"ended with {status}"
        return running + 1


def main() -> None:
    """Run the mutations of one kind or of all, and print what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, help="run this mutation alone, and print its error")
    parser.add_argument("--trial", action="store_true", help="with --only: leave trials apart")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker or given.only is not None:
        first = given.first if given.only is None else given.only
        count = given.count if given.only is None else given.only + 1
        work(
            given.kind,
            given.seed,
            first,
            count,
            trial=given.trial,
            verbose=given.only is not None,
        )
        return
    failed, say = False, TerminalReporter().say
    for kind in [given.kind] if given.kind else KINDS:
        started = time.monotonic()
        report = fuzz(kind, given.count, given.seed)
        spent = time.monotonic() - started
        say(
            f"{kind}: {report.refused} refused, {report.accepted} accepted, "
            f"{report.contained} contained by a trial, {len(report.faults)} faults, {spent:.0f} s"
        )
        for index, fault in report.faults.items():
            say(f"  --kind {kind} --seed {given.seed} --only {index}: {fault}")
        failed = failed or bool(report.faults)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
