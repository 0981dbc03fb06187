"""Which files a checkpoint has: its weights, and what lies beside the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matryo.build.derive.said import JsonFile, shown
from matryo.build.inputs import format_of
from matryo.build.limits import FACTS_MAX_BYTES
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import read_json, refusing
from matryo.store.unread import INDEX_FILE, WEIGHTS_FILE, explain_file, explain_folder

_ONNX_FILES = ("onnx/model.onnx", "model.onnx")
_TRANSFORMERS = ("Transformer", "StaticEmbedding")


@dataclass(frozen=True, slots=True)
class Module:
    """One module of a sentence-transformers model.

    Attributes:
        kind: the last part of the module's `type`, such as `Pooling`.
        path: folder of the module, relative to the checkpoint's; empty for the folder itself.
    """

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """The files of a checkpoint.

    Attributes:
        root: folder of the checkpoint, absolute.
        weights: the weights, or the index of their shards, relative to `root`.
        suffix: of the weights' format: `.safetensors`, `.gguf` or `.onnx`.
        inner: folder of `config.json` and of the tokenizer, relative to `root`; empty for `root`.
        modules: the modules of sentence-transformers, in order; None if `modules.json` is missing.
    """

    root: Path
    weights: str
    suffix: str
    inner: str
    modules: tuple[Module, ...] | None

    def json(self, name: str) -> JsonFile:
        """A JSON file of the checkpoint's folder."""
        return JsonFile(self.root, name)

    def inner_json(self, name: str) -> JsonFile:
        """A JSON file that lies with `config.json`."""
        return JsonFile(self.root, f"{self.inner}/{name}" if self.inner else name)


def read_layout(path: Path) -> CheckpointLayout:
    """The layout of a folder or of a file.

    Args:
        path: absolute; a folder, or a `.safetensors`, `.gguf` or `.onnx` file.

    Raises:
        CheckpointMismatch: there is no such file, or no weights that Matryo reads; says what to do.
    """
    with refusing(
        lambda reason: CheckpointMismatch(
            f"{path}: its files cannot be found by what modules.json says: {reason}. Fetch the "
            "checkpoint again."
        )
    ):
        return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_file(path: Path) -> CheckpointLayout:
    if not path.is_file():
        what = "a link to nothing" if path.is_symlink() else "no such file or folder"
        raise CheckpointMismatch(f"{path}: {what}.")
    suffix, hint = format_of(path), explain_file(path)
    if path.name == INDEX_FILE:
        return _of_folder(path.parent)
    if suffix is None or hint:
        raise CheckpointMismatch(
            f"{path}: cannot be read; give a folder, or a .safetensors, .gguf or .onnx file. "
            f"{hint}".rstrip()
        )
    root = path.parent
    if suffix == ".safetensors" and (root.parent / "modules.json").is_file():
        modules = _modules(root.parent)
        if modules and modules[0].path == root.name:  # 0_Transformer/model.safetensors
            return CheckpointLayout(
                root.parent, f"{root.name}/{path.name}", suffix, root.name, modules
            )
    # Exports often lie in a folder of their own, onnx/model.onnx, below the other files.
    if suffix == ".onnx" and not (root / "config.json").is_file():
        above = root.parent
        if (above / "config.json").is_file() or (above / "modules.json").is_file():
            name = f"{root.name}/{path.name}"
            return CheckpointLayout(above, name, suffix, _inner(above), _modules(above))
    if suffix == ".gguf":
        return CheckpointLayout(root, path.name, suffix, "", None)
    return CheckpointLayout(root, path.name, suffix, _inner(root), _modules(root))


def _of_folder(root: Path) -> CheckpointLayout:
    modules, inner = _modules(root), _inner(root)
    base = root / inner
    at = f"{inner}/" if inner else ""
    if (base / "adapter_config.json").is_file() and not (base / "config.json").is_file():
        raise CheckpointMismatch(f"{base}: {explain_file(base / 'adapter_config.json')}")
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (base / name).is_file():
            return CheckpointLayout(root, at + name, ".safetensors", inner, modules)
    for name in _ONNX_FILES:
        for folder, prefix in ((base, at), (root, "")):
            if (folder / name).is_file():
                return CheckpointLayout(root, prefix + name, ".onnx", inner, modules)
    if files := sorted(root.glob("*.gguf")):
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:8])
            raise CheckpointMismatch(f"{root} holds several GGUF files: {names}. Give one of them.")
        return CheckpointLayout(root, files[0].name, ".gguf", "", None)
    raise CheckpointMismatch(
        f"{base} holds no weights that Matryo reads. {explain_folder(base)}".rstrip()
    )


def _inner(root: Path) -> str:
    """Folder of the transformer, relative to `root`; empty for `root` itself."""
    modules = _modules(root)
    if modules and modules[0].kind in _TRANSFORMERS:
        return modules[0].path
    return ""


def _modules(root: Path) -> tuple[Module, ...] | None:
    """The modules in `modules.json`; None if there is no such file.

    Raises:
        CheckpointMismatch: the file holds anything else.
    """
    path = root / "modules.json"
    if not path.is_file():
        return None

    def odd(reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(f"{path} cannot be read: {reason}. Fetch the file again.")

    with refusing(odd):
        modules = tuple(_read_modules(read_json(path, FACTS_MAX_BYTES)))
        if not modules:
            raise ValueError("it names no module")
    return modules


def _read_modules(found: object) -> Iterator[Module]:
    if not isinstance(found, list):
        raise ValueError("it holds no list")  # noqa: TRY004 - one error for any content
    for entry in cast("list[Any]", found):
        kind, path = entry["type"], entry.get("path", "")
        parts = Path(path).parts
        if Path(path).is_absolute() or any(part.startswith(".") for part in parts):
            raise ValueError(f"the path {shown(path)} leads out of the folder")
        yield Module(str(kind).rsplit(".", 1)[-1], "/".join(parts))
