"""Holds that an older CPU is told from another model: `python -m tests.guard_cpus`.

Records what makes an index on this CPU, and checks the records under QEMU on a CPU without AVX. The
script runs on x86-64 with AVX2, and says which Debian package is missing.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matryo.engine.cpu import cpu_features

ROOT = Path(__file__).parents[1]
MODEL = "all-minilm-l6-v2"
_CPU = "Nehalem"  # of 2008; numpy and ONNX Runtime need SSE4.2, which that has
_LACKS = "AVX"
# The operators of matryo-native sum in one order on every CPU. ONNX Runtime's do not, and in int8 a
# last bit may move a rounded activation by a whole step.
_EXPECTED = {
    ("onnxruntime", "fp32"): "drifted",
    ("onnxruntime", "int8"): "drifted",
    ("native", "int8"): "same",
}


def _matryo(*words: object, kernels: str, emulated: bool = False) -> tuple[int, str]:
    """The status and the standard output of a command."""
    before = ("qemu-x86_64", "-cpu", _CPU) if emulated else ()
    command = [*before, sys.executable, "-m", "matryo", *map(str, words)]
    env = os.environ | {"MATRYO_KERNELS": kernels}
    done = subprocess.run(command, check=False, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not (done.stdout or words[0] != "guard"):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.returncode, done.stdout


def check(folder: Path, kernels: str, precision: str) -> None:
    """Record here, check there, and hold that the CPU alone is named.

    Args:
        folder: of the records.
        kernels: whose operators compute.
        precision: of the model.
    """
    record = folder / f"{kernels}-{precision}.json"
    _matryo("build", MODEL, "--precision", precision, kernels=kernels)
    flags = ("--model", MODEL, "--precision", precision)
    _matryo("guard", "record", record, *flags, kernels=kernels)
    words = ("guard", "check", record, "--json")
    status, here = _matryo(*words, kernels=kernels)
    _hold(status == 0 and json.loads(here)["verdict"] == "same", "this CPU is not itself", here)
    status, there = _matryo(*words, kernels=kernels, emulated=True)
    found: dict[str, Any] = json.loads(there)
    expected = _EXPECTED[kernels, precision]
    _hold((status, found["verdict"]) == (0, expected), f"expected {expected}", there)
    kinds = [cause["kind"] for cause in found["causes"]]
    _hold(kinds == ([] if expected == "same" else ["cpu"]), "other causes than the CPU", there)
    for cause in found["causes"]:
        _hold(_LACKS in cause["recorded"], "this CPU is not named", there)
        _hold(_LACKS not in cause["found"], "the older CPU is not named", there)
    cosines = [one["cosine_min"] for one in found["vectors"] if one["cosine_min"] is not None]
    least = f", cosine at least {min(cosines):.9f}" if cosines else ""
    sys.stdout.write(f"{MODEL} {precision}, {kernels}, on {_CPU}: {found['verdict']}{least}\n")
    sys.stdout.flush()


def check_automatic(folder: Path) -> None:
    """With `auto`, an old CPU gets ONNX Runtime's operators: kernels are named, not a model."""
    record = folder / "native-int8.json"
    status, there = _matryo("guard", "check", record, "--json", kernels="auto", emulated=True)
    found: dict[str, Any] = json.loads(there)
    kinds = [cause["kind"] for cause in found["causes"]]
    _hold(kinds == ["kernels", "cpu"], "expected kernels and CPU", there)
    sys.stdout.write(f"{MODEL} int8, automatic kernels, on {_CPU}: {found['verdict']}, {status}\n")


def _hold(holds: bool, what: str, output: str) -> None:
    if not holds:
        sys.exit(f"{what}:\n{output}")


def main() -> None:
    """Check each build, or exit with what is missing."""
    if platform.machine() != "x86_64" or "AVX2" not in cpu_features():
        sys.exit("an older CPU is compared with one of x86-64 that has AVX2, which this one lacks")
    if not shutil.which("qemu-x86_64"):
        sys.exit("packages are missing: apt-get install qemu-user")
    _matryo("pull", MODEL, kernels="onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        for kernels, precision in _EXPECTED:
            check(Path(folder), kernels, precision)
        check_automatic(Path(folder))


if __name__ == "__main__":
    main()
