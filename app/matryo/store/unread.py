"""What a folder or a file holds that Matryo does not read, and what to do about that."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""The file that says which shard holds each tensor."""

_SAVE = "load it with transformers and call save_pretrained(FOLDER), which writes model.safetensors"
# A pickle may run any code when it is loaded, so Matryo never loads one.
_CONVERT = (
    "convert it with these two lines of Python: "
    "from transformers import AutoModel; "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)

# The pattern of a name, what such a file is, and the remedy. The first pattern that fits counts.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"adapter_(model\.(safetensors|bin)|config\.json)",
        "an adapter (LoRA), not the weights of a model",
        "merge it into its base model with peft: merge_and_unload(), then save_pretrained(FOLDER)",
    ),
    (
        r".*-\d+-of-\d+\.safetensors",
        "one of several files of weights",
        f"give the folder, which must hold {INDEX_FILE} and every shard",
    ),
    (
        r".*\.(zip|tar|tgz|tbz2?|txz|gz|bz2|xz|zst|7z|rar)",
        "an archive",
        "unpack it and give the folder",
    ),
    (
        r".*\.(bin|pt|pth|ckpt|pkl)|.*\.bin\.index\.json",
        "weights as PyTorch pickles them",
        _CONVERT,
    ),
    (r".*\.(h5|keras)", "weights of TensorFlow", _SAVE),
    (r".*\.msgpack", "weights of Flax", _SAVE),
    (
        r".*\.(npz|npy|ot|tflite|mlmodel|mlpackage|pb|engine|plan|ggml|xml)",
        "a model in a format of another program",
        "fetch the model as safetensors, GGUF or ONNX",
    ),
)


def explain_file(path: Path) -> str:
    """A sentence on a file that is not read, with the remedy; empty if nothing is known of it."""
    for pattern, what, remedy in _KINDS:
        if re.fullmatch(pattern, path.name, re.IGNORECASE):
            return f"{path.name} is {what}, which Matryo does not read: {remedy}."
    return ""


def explain_folder(folder: Path) -> str:
    """A sentence on what a folder holds in place of `model.safetensors`, with the remedy.

    Returns:
        An empty string if the folder holds nothing, or does not exist.
    """
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir())
    if revisions := sorted(folder.glob(f"snapshots/*/{WEIGHTS_FILE}")):
        return f"It is a cache of a hub: give {revisions[0].parent}."
    for pattern in ("*.safetensors", "*.gguf", "*.onnx", "onnx/*.onnx", f"*/{WEIGHTS_FILE}"):
        for path in sorted(folder.glob(pattern)):
            if not explain_file(path):
                return f"It holds {path.relative_to(folder)}: give that file itself, {path}."
    # In the order of the table: an index of shards explains more than one of the shards.
    for pattern, _, _ in _KINDS:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return explain_file(folder / name)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")  # noqa: PLR2004
    return f"It holds {shown}." if names else "It is empty."
