"""The library as a whole: its kernels, its refusals, and how ONNX Runtime registers it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from matryo import __version__
from tests.native.operators import layer_norm, make_layer, native, run

ROOT = Path(__file__).parents[2]


def child(*arguments: str, isa: str = "") -> subprocess.CompletedProcess[str]:
    """A Python process with the kernels `isa`."""
    environment = os.environ | {"MATRYO_NATIVE_ISA": isa}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_the_versions_agree() -> None:
    """matryo, matryo-native and the extra that asks for it have one version."""
    own = tomllib.loads((ROOT / "native/pyproject.toml").read_text("utf-8"))["project"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert own["version"] == __version__
    assert extras["optional-dependencies"]["native"] == [f"matryo-native=={__version__}"]


def test_the_library_is_installed_with_its_licence_and_without_python_version() -> None:
    """`library` is a file, `isa` names kernels, and any Python 3 of the platform takes the wheel."""
    assert native.library().is_file()
    assert native.isa() in {"avx512-vnni", "avx2", "neon-dotprod", "portable"}
    assert native.INTERFACE >= 1
    wheel = distribution("matryo-native").read_text("WHEEL") or ""
    assert "Tag: py3-none-" in wheel


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_ends_early(threads: int) -> None:
    """A flag ends the runs of the thread that watches the flag, and of no other; bits stay."""
    rng = np.random.default_rng(5)
    layer = make_layer(rng, "bytes", 256, 192)
    x = rng.standard_normal((300, 256)).astype(np.float32)
    expected = layer.run(x, threads=threads)
    watch, flag = native.watcher(), ctypes.c_int32(1)
    watch(flag)
    try:
        with pytest.raises(Exception, match="the run was interrupted"):
            layer.run(x, threads=threads)
        with ThreadPoolExecutor(1) as other:
            found = other.submit(layer.run, x, threads=threads)
            assert np.array_equal(found.result(), expected)
        flag.value = 0
        assert np.array_equal(layer.run(x, threads=threads), expected)
        flag.value = 1
    finally:
        watch(None)
    assert np.array_equal(layer.run(x, threads=threads), expected)


def test_every_kernel_gives_the_same_bits() -> None:
    """Each set of kernels that this CPU can run prints the same hashes as the portable one."""
    expected = child("-m", "tests.native.bits", isa="portable")
    assert expected.returncode == 0, expected.stderr
    assert expected.stdout.count("\n") > 200
    found: list[str] = []
    for isa in ("avx512-vnni", "avx2", "neon-dotprod"):
        if child("-c", "import matryo_native; matryo_native.isa()", isa=isa).returncode == 0:
            assert child("-m", "tests.native.bits", isa=isa).stdout == expected.stdout
            found.append(isa)
    assert native.isa() in {*found, "portable"}


def test_unknown_kernels_are_refused() -> None:
    """A name that is no kernel of this CPU is an error, in Python and in a session."""
    asked = child("-c", "import matryo_native; matryo_native.isa()", isa="avx3")
    assert "ValueError: MATRYO_NATIVE_ISA names kernels" in asked.stderr
    registered = child("-m", "tests.native.bits", isa="avx3")
    assert registered.returncode == 1
    assert "MATRYO_NATIVE_ISA names kernels" in registered.stderr


def test_wrong_calls_never_crash() -> None:
    """Two thousand calls with wrong shapes and attributes give results or errors with a message."""
    done = child("-m", "tests.native.fuzz", "2000")
    assert done.returncode == 0, (done.returncode, done.stdout[-200:], done.stderr[-2000:])
    results, errors = (int(word) for word in done.stdout.splitlines()[-1].split() if word.isdigit())
    assert min(results, errors) > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": 0}, "columns is 0, not 1 to"),
        ({"activation": 4}, "activation is 4, not 0 to 3"),
        ({"zero_point": 0}, "zero_point is 0, not 1 to 254"),
        ({"x": (3, 0)}, "x is 0 wide"),
        ({"x": ()}, "x is missing, or has no axes"),
        ({"x": (3, 9)}, "the packed weights have"),
        ({"sums": None}, "sums are missing"),
    ],
)
def test_errors_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    """A wrong attribute or shape is named in the error."""
    layer = make_layer(np.random.default_rng(0), "bytes", 40, 20)
    op, inputs, attributes = layer.call(np.ones((3, 40), np.float32))
    inputs = list(inputs)
    for name, value in change.items():
        if name == "x":
            inputs[0] = np.ones(value, np.float32)  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif name == "sums":
            inputs[3] = None
        else:
            attributes[name] = value  # pyright: ignore[reportArgumentType]
    with pytest.raises(Exception, match=message):
        run(op, inputs, attributes)


def test_a_width_that_layer_norm_does_not_take_is_an_error() -> None:
    """A width that 16 does not divide is named in the error."""
    with pytest.raises(Exception, match="x is 20 wide, not a multiple of 16"):
        layer_norm(np.ones((2, 20), np.float32), np.ones(20, np.float32), None)


_GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)


def test_a_registration_that_fails_can_be_repeated(tmp_path: Path) -> None:
    """Each failed registration returns an error of its own, and releases what it made.

    ONNX Runtime releases the error that it gets: an error returned twice would be freed twice.
    """
    statuses, released = iter(range(1000, 2000)), list[int]()

    def release(domain: int) -> int:
        released.append(domain)
        return 0

    def create(name: int, domain: ctypes.Array[ctypes.c_void_p]) -> int:
        domain[0] = 77
        return 0

    calls = {  # indices of OrtApi, see ort.h
        26: ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))(
            create
        ),
        27: ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: next(statuses)),
        101: ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t)(release),
    }
    table = (ctypes.c_void_p * 275)()
    for index, call in calls.items():
        table[index] = ctypes.cast(call, ctypes.c_void_p).value
    get_api = _GET_API(lambda version: ctypes.addressof(table))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value)
    # A copy of the library has no registration of its own yet.
    register = ctypes.CDLL(str(shutil.copy(native.library(), tmp_path))).RegisterCustomOps
    register.restype = ctypes.c_size_t
    assert [register(None, base) for _ in range(2)] == [1000, 1001]
    assert released == [77, 77]


def test_an_old_onnx_runtime_is_an_error() -> None:
    """A runtime without the functions that the operators need gets an error that names a version."""
    messages: list[bytes] = []

    def status(code: int, message: bytes) -> int:
        messages.append(message)
        return 5

    table = (ctypes.c_void_p * 275)()
    create = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)(status)
    table[0] = ctypes.cast(create, ctypes.c_void_p).value
    get_api = _GET_API(lambda version: ctypes.addressof(table) if version == 1 else 0)
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value)
    register = ctypes.CDLL(str(native.library())).RegisterCustomOps
    register.restype = ctypes.c_size_t
    assert register(None, base) == 5
    assert b"1.17 or newer" in messages[0]
