"""The package matryo-native: operators for ONNX Runtime that are faster than its own.

The package is an extra. A graph that uses its operators is another artefact with another
fingerprint, since its vectors differ in their last bits, and in int8 by more.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from matryo.core.choices import KernelsChoice
from matryo.core.errors import SettingsInvalid

INTERFACE = 1
"""What graphs expect of the operators: their names, layouts and bits."""

_PACKAGE = "matryo_native"
_REMEDY = 'Install it with pip install "matryo[native]", or set MATRYO_KERNELS=onnxruntime.'
_SLOW = "portable"  # kernels without vector instructions: slower than ONNX Runtime's operators


def uses_native(choice: KernelsChoice) -> bool:
    """Whether the operators of matryo-native are to be used.

    Raises:
        SettingsInvalid: `native` is chosen, and the package is missing or of another version; or
            MATRYO_NATIVE_ISA names kernels that this CPU cannot run.
    """
    if choice == "onnxruntime":
        return False
    if choice == "native":
        native_library()
        return True
    if importlib.util.find_spec(_PACKAGE) is None or _interface() != INTERFACE:
        return False
    try:
        return importlib.import_module(_PACKAGE).isa() != _SLOW
    except OSError:  # the library was built for another system
        return False
    except ValueError as exc:
        raise SettingsInvalid(f"{exc}.") from exc


def native_library() -> Path:
    """The shared library that a session registers.

    Raises:
        SettingsInvalid: the package is missing, or of another version.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise SettingsInvalid(f"The package matryo-native is not installed. {_REMEDY}")
    if (found := _interface()) != INTERFACE:
        raise SettingsInvalid(
            f"The package matryo-native has interface {found}, and this version of Matryo needs "
            f"{INTERFACE}. {_REMEDY}"
        )
    path: Path = importlib.import_module(_PACKAGE).library()
    return path


def native_watcher() -> Callable[[ctypes.c_int32 | None], None]:
    """A function that has the runs of the calling thread end early; see `matryo_native.watcher`.

    Raises:
        SettingsInvalid: the package is missing, or of another version.
    """
    native_library()
    module = importlib.import_module(_PACKAGE)
    if not hasattr(module, "watcher"):
        raise SettingsInvalid(f"The package matryo-native is older than this Matryo. {_REMEDY}")
    watcher: Callable[[ctypes.c_int32 | None], None] = module.watcher()
    return watcher


def _interface() -> int:
    found: int = importlib.import_module(_PACKAGE).INTERFACE
    return found
