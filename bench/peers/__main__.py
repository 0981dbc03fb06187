"""Matryo beside other engines: speed by shape, and accuracy, in one interleaved run.

    .venv/bin/python -m bench.peers --model all-minilm-l6-v2 --peer-python PYTHON

Every engine runs in a process of its own, on the same weights, and one engine at a time. Matryo has
one run of one thread for each core. Every other engine has the fastest of its settings at each
shape, which are tried first and remembered in the cache. PYTHON is one that has torch, safetensors,
openvino and nncf, and, if they shall take part, llama-cpp-python with gguf, and fastembed; an
engine that is missing there is left out, and the output says so.

Accuracy is measured on real texts (see `bench.corpus`) and means something for trained weights
only; `--accuracy 0` leaves it out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.corpus import debian_pairs
from bench.peers.child import Child
from bench.peers.gguf_file import write_gguf
from bench.peers.plot import plot
from bench.peers.rounds import Measured, Shape, choose, race
from bench.peers.table import FP32, INT8, NATIVE_FP32, NATIVE_INT8, RIVALS, table
from bench.peers.with_llama import GGUF
from matryo.assembly.models import make_ready
from matryo.catalog.catalog import open_catalog
from matryo.core.environment import load_settings
from matryo.core.native import uses_native
from matryo.engine import plan_cores
from matryo.engine.factory import load_engine
from matryo.engine.postprocess import FloatArray
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store

SHAPES: tuple[Shape, ...] = ((1, 16), (1, 128), (4, 128), (8, 64), (1, 512), (1, 2048))
LONG_SHAPES: tuple[Shape, ...] = ((1, 4096), (1, 8192))
_CALIBRATION_TEXTS, _BATCH = 300, 16
_SAME = 0.99999
_OPENVINO, _NNCF = ("torch", "openvino"), ("torch", "openvino", "nncf")
_PEERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "OpenVINO f32": (_OPENVINO, ("with_openvino", "--kind", "f32")),
    "OpenVINO bf16": (_OPENVINO, ("with_openvino", "--kind", "bf16")),
    "OpenVINO 8-bit weights": (_NNCF, ("with_openvino", "--kind", "weights8")),
    "OpenVINO static int8": (_NNCF, ("with_openvino", "--kind", "static8")),
    "llama.cpp Q8_0": (("llama_cpp",), ("with_llama",)),
    "FastEmbed fp32": (("torch", "onnxscript", "fastembed"), ("with_fastembed",)),
}
"""Modules that each other engine needs, and the module here that runs the engine."""


def cpu() -> tuple[str, list[str]]:
    """Name of the CPU, and those of its features that decide how fast products are."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = facts.get("flags", facts.get("Features", "")).split()
    shown = [flag for flag in flags if flag in (*wanted, "asimddp", "i8mm", "bf16", "sve")]
    return facts.get("model name", platform.processor() or platform.machine()), shown


def missing(python: str, modules: Sequence[str]) -> list[str]:
    """The modules that a Python lacks."""
    code = "from importlib.util import find_spec as f; print(*(m for m in argv[1:] if not f(m)))"
    code = f"from sys import argv; {code}"
    command = [python, "-c", code, *modules]
    found = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return found.stdout.split()


def commands(
    given: argparse.Namespace, spec: Path, precisions: Collection[str], *, bf16: bool
) -> dict[str, list[str]]:
    """The command of every engine that takes part, by its name; says which are left out and why."""
    ours = [sys.executable, "-m", "bench.peers.ours", "--model", given.model]
    found = {
        name: [*ours, "--precision", precision, "--kernels", kernels, "--cores", str(given.cores)]
        for name, precision, kernels in (
            (FP32, "fp32", "onnxruntime"),
            (INT8, "int8", "onnxruntime"),
            (NATIVE_FP32, "fp32", "native"),
            (NATIVE_INT8, "int8", "native"),
        )
        if precision in precisions and (kernels != "native" or uses_native("auto"))
    }
    if NATIVE_INT8 not in found:
        print("matryo-native is left out: it is not installed")
    for name, (modules, (module, *flags)) in _PEERS.items():
        if given.peer_python is None:
            print(f"{name} is left out: no --peer-python is given")
        elif name == "OpenVINO bf16" and not bf16:
            print(f"{name} is left out: /proc/cpuinfo shows neither avx512_bf16 nor amx_bf16")
        elif lacks := missing(given.peer_python, modules):
            print(f"{name} is left out: {given.peer_python} lacks {', '.join(lacks)}")
        else:
            command = [given.peer_python, "-m", f"bench.peers.{module}", "--spec", str(spec)]
            found[name] = command + flags + (["--bf16"] if bf16 and flags else [])
    if given.only:
        found = {name: command for name, command in found.items() if name in given.only}
    return found


def prepare(given: argparse.Namespace) -> Path:
    """Write the texts' token ids and what the other engines need to know; returns the latter."""
    settings = make_ready(
        load_settings(None, model=(given.model,), precision="fp32", kernels="onnxruntime")
    )
    manifest, store = open_catalog(settings).manifest(settings.model[0]), Store(settings.home)
    engine = load_engine(manifest, find_artifact(store, manifest, "fp32"), plan_cores(1))
    pairs = debian_pairs(given.accuracy + _CALIBRATION_TEXTS)
    prefix = manifest.prefix("document")
    encoded = engine.tokenize([prefix + text for _, text in pairs])
    cache: Path = (given.cache / manifest.id).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    texts, spec = cache / "texts.json", cache / "spec.json"
    # Texts over the limit are cut, and none is so long that a batch with it takes minutes.
    longest = min(512, manifest.tokenizer.max_tokens)
    texts.write_text(json.dumps([list(map(int, one.ids[:longest])) for one in encoded]), "utf-8")
    norm = manifest.output.layer_norm_eps if "layer_norm" in manifest.output.steps else None
    facts = {
        "architecture": manifest.architecture.model_dump(),
        "layer_norm_eps": norm,
        "weights": str(given.checkpoint.absolute() / "model.safetensors"),
        "tokenizer": str(given.checkpoint.absolute() / "tokenizer.json"),
        "texts": str(texts),
        "cache": str(cache),
        "cores": given.cores,
    }
    spec.write_text(json.dumps(facts, indent=1), "utf-8")
    return spec


def vectors(child: Child, setting: str, spec: Path, batches: Sequence[Sequence[int]]) -> FloatArray:
    """Vectors of an engine, by index of the text."""
    output = spec.with_name("vectors.npy")
    child.embed(setting, spec.with_name("texts.json"), batches, output)
    rows: FloatArray = np.load(output)
    found = np.empty_like(rows)
    found[[index for batch in batches for index in batch]] = rows
    return found


def accuracy(
    children: Sequence[Child], measured: Mapping[str, Measured], spec: Path, n_texts: int
) -> None:
    """Measure cosines to Matryo's fp32, and how far a text alone is from itself in a batch.

    An engine has the setting that was the fastest at the most shapes.
    """
    order = list(range(n_texts))
    alone = [[index] for index in order]
    random.Random(0).shuffle(order)
    together = [order[start : start + _BATCH] for start in range(0, n_texts, _BATCH)]
    reference: FloatArray | None = None
    for child in children:  # Matryo's fp32 is the first
        chosen = list(measured[child.name].chosen.values()) or child.settings
        setting = max(chosen, key=chosen.count)
        one = vectors(child, setting, spec, alone)
        reference = one if reference is None else reference
        cosines = (one * reference).sum(1)
        moved = float(np.abs(vectors(child, setting, spec, together) - one).max())
        measured[child.name].accuracy = {
            "mean": float(cosines.mean()),
            "least": float(cosines.min()),
            "company": moved,
        }
        measured[child.name].accurate_at = setting
        print(child.name, json.dumps(measured[child.name].accuracy), flush=True)


def check_same_model(children: Sequence[Child], spec: Path) -> None:
    """Compare the vectors of every engine that computes in fp32 with Matryo's, on some texts.

    Raises:
        SystemExit: an engine does not run the same model.
    """
    by_name = {child.name: child for child in children}
    if (ours := by_name.get(FP32)) is None:
        return
    batches = [[index] for index in range(8)]
    reference = vectors(ours, ours.settings[0], spec, batches)
    for name in ("OpenVINO f32", "FastEmbed fp32"):
        if (child := by_name.get(name)) is not None:
            found = vectors(child, child.settings[0], spec, batches)
            least = float((found * reference).sum(1).min())
            if least <= _SAME:
                raise SystemExit(f"{name} has cosine {least} to {FP32}: the models differ")
            print(f"{name} has cosine {least:.7f} to {FP32}: the model is the same")


def write(
    given: argparse.Namespace,
    measured: Mapping[str, Measured],
    shapes: Sequence[Shape],
    n_rounds: int,
) -> None:
    """Print the table, and write it and a JSON file of all rounds."""
    name, flags = cpu()
    head = (
        f"{given.model}, {name}, {given.cores} cores, {' '.join(flags)}, "
        f"{datetime.now(UTC).date()}, medians of {n_rounds} interleaved rounds"
        + (", tokens a second of one core by CPU time" if given.clock == "cpu" else "")
    )
    page = f"{head}\n\n{table(measured, shapes)}\n"
    print(f"\n{page}", flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    facts = {
        engine: {
            "about": one.about,
            "accuracy": one.accuracy,
            "accuracy_setting": one.accurate_at,
            "shapes": {
                f"{texts}x{tokens}": {
                    "setting": setting,
                    "rates": one.rates.get((texts, tokens), []),
                }
                for (texts, tokens), setting in one.chosen.items()
            },
        }
        for engine, one in measured.items()
    }
    path = given.output / f"peers-{given.model}.json"
    path.write_text(json.dumps({"run": head, "engines": facts}, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page, "utf-8")
    if n_rounds and not RIVALS.keys().isdisjoint(measured):
        plot(given.model, measured, shapes, path.with_suffix(".svg"))
    print(f"written to {path}, and the table beside it")


def _shape(text: str) -> Shape:
    texts, tokens = text.lower().split("x")
    return int(texts), int(tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it as Markdown, JSON and a plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--peer-python", help="a Python that has the other engines")
    parser.add_argument("--cache", type=Path, default=Path("bench/out/peers"))
    parser.add_argument("--output", type=Path, default=Path("bench/out"))
    parser.add_argument("--only", action="append", choices=(NATIVE_FP32, NATIVE_INT8, *RIVALS))
    parser.add_argument("--shape", type=_shape, action="append", help="texts x tokens, as 4x128")
    parser.add_argument("--long", action="store_true", help="texts of 4096 and 8192 tokens, too")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="0 measures no speed")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts the CPU time of each engine: tokens a second of one core, for a machine "
        "that others use too",
    )
    parser.add_argument("--accuracy", type=int, default=1000, help="texts; 0 measures none")
    given = parser.parse_args(arguments)
    spec = prepare(given)
    shapes = list(given.shape or SHAPES + (LONG_SHAPES if given.long else ()))
    manifest = open_catalog(load_settings(None)).manifest(given.model)
    limit = manifest.tokenizer.max_tokens
    shapes = [shape for shape in shapes if shape[1] <= limit]
    bf16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu()[1])
    vocabulary, log = int(manifest.architecture.config["vocab_size"]), spec.with_name("log.txt")
    measured: dict[str, Measured] = {}
    found = commands(given, spec, manifest.precisions, bf16=bf16)
    if "llama.cpp Q8_0" in found and not (gguf := spec.with_name(GGUF)).exists():
        weights = given.checkpoint / "model.safetensors"
        write_gguf(manifest.architecture.model_dump(), weights, gguf)
    for name, command in list(found.items()):
        # A process of its own: every setting that is tried takes memory.
        try:
            with Child(name, command, vocabulary, log, given.clock) as child:
                known = spec.with_name("settings.json")
                chosen = choose(child, shapes, given.seconds / 2, known)
                measured[name] = Measured(child.about, chosen)
        except SystemExit as exc:
            if name not in RIVALS:
                raise
            print(f"{name} is left out: {exc}")
            del found[name]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child(name, command, vocabulary, log, given.clock))
            for name, command in found.items()
        ]
        check_same_model(children, spec)
        if given.accuracy:
            accuracy(children, measured, spec, given.accuracy)
        for number in range(given.rounds):
            race(children, measured, shapes, number, given.seconds)
            write(given, measured, shapes, number + 1)  # a long run that is stopped has a table
    if not given.rounds:
        write(given, measured, shapes, 0)


if __name__ == "__main__":
    main()
