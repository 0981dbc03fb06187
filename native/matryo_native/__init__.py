"""The shared library of matryo's operators for ONNX Runtime.

Register the library with a session's options before the session is made:
`options.register_custom_ops_library(str(matryo_native.library()))`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["INTERFACE", "isa", "library", "watcher"]

INTERFACE: int = 1
"""Raised with every change of an operator's bits, inputs, attributes or layout of weights."""


def library() -> Path:
    """The path of the shared library.

    Raises:
        FileNotFoundError: the package was imported from its sources, which have no library.
    """
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(__file__).with_name(f"libmatryo_native.{suffix}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: this copy of matryo-native is not built. "
            "Install it with: pip install ./native"
        )
    return path


def isa() -> str:
    """The name of the kernels that this process uses, such as "avx2".

    Raises:
        ValueError: the variable MATRYO_NATIVE_ISA names kernels that this CPU cannot run.
    """
    function = ctypes.CDLL(str(library())).matryo_native_isa
    function.restype = ctypes.c_char_p
    name = function()
    if name is None:
        raise ValueError(
            "MATRYO_NATIVE_ISA names kernels that this library lacks or this CPU cannot run; "
            "unset it to use the fastest ones"
        )
    return name.decode()


def watcher() -> Callable[[ctypes.c_int32 | None], None]:
    """A function that lets the runs of the calling thread be ended early.

    Give the function a flag before a run, and None after the run. Once the flag is not 0, which any
    thread may make it, the operators begin no further task, and the run raises.
    """
    # Without giving up the interpreter's lock, which would cost more than the call.
    function = ctypes.PyDLL(str(library())).matryo_native_watch
    function.argtypes = [ctypes.POINTER(ctypes.c_int32)]
    function.restype = None
    return lambda flag: function(None if flag is None else ctypes.byref(flag))
