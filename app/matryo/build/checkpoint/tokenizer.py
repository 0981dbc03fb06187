"""Finds or makes the `tokenizer.json` of a checkpoint.

Serving reads `tokenizer.json` with the `tokenizers` library alone. A checkpoint that has
only a vocabulary (`vocab.txt`, `sentencepiece.bpe.model`, ...) is converted once, here, by
transformers, which knows every format; one in GGUF has it in its metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from matryo.core.errors import CheckpointMismatch
from matryo.core.progress import Reporter

_FILE = "tokenizer.json"


def find_tokenizer(weights: Path, stored: Path, into: Path, reporter: Reporter) -> Path:
    """Path of a checkpoint's `tokenizer.json`.

    The file beside the weights comes first, then the one of the published checkpoint. Without
    either, one is made from the checkpoint's vocabulary.

    Args:
        weights: a `.safetensors`, `.gguf` or `.onnx` file.
        stored: folder of the published checkpoint in the store; may not exist.
        into: folder of a tokenizer that has to be made.
        reporter: takes a sentence about a tokenizer that is not beside the weights.

    Raises:
        CheckpointMismatch: there is none, and none can be made.
    """
    if weights.suffix == ".safetensors":
        return tokenizer_json(weights.parent, into)
    # Exports often lie in a folder of their own, onnx/model.onnx, below the tokenizer.
    folders = [weights.parent, weights.parent.parent] if weights.suffix == ".onnx" else []
    for folder in (*(folders or [weights.parent]), stored):
        if (folder / _FILE).is_file():
            reporter.say(f"tokenizer: {folder / _FILE}")
            return folder / _FILE
    if weights.suffix != ".gguf":
        raise CheckpointMismatch(
            f"there is no {_FILE} beside {weights}, nor a published one in {stored}; put the "
            "model's there, or run matryo pull first"
        )
    from matryo.build.checkpoint.gguf import GgufCheckpoint
    from matryo.build.checkpoint.gguf_tokenizer import rebuild_tokenizer

    checkpoint = GgufCheckpoint(weights)
    cast("Any", rebuild_tokenizer(checkpoint)).save(str(into / _FILE))
    checkpoint.close()
    reporter.say(f"tokenizer: rebuilt from the metadata of {weights.name}")
    return into / _FILE


def tokenizer_json(folder: Path, into: Path) -> Path:
    """Path of the checkpoint's `tokenizer.json`, made in `into` if the folder has none.

    Raises:
        CheckpointMismatch: there is none, and transformers cannot make one.
    """
    path = folder / _FILE
    if path.is_file():
        return path
    vocabularies = (
        "vocab.txt",
        "vocab.json",
        "sentencepiece.bpe.model",
        "spiece.model",
    )
    if not any((folder / name).is_file() for name in vocabularies):
        raise CheckpointMismatch(
            f"{folder} has no {_FILE}, nor a vocabulary to make one from "
            f"({', '.join(vocabularies)}); put the model's {_FILE} there"
        )
    try:
        from transformers import AutoTokenizer  # 1.5 s, and rarely needed
    except ImportError as exc:  # the container image leaves it out
        raise CheckpointMismatch(
            f"{folder} has no {_FILE}, and making one of its vocabulary needs transformers; "
            "install it, or put the model's tokenizer.json there"
        ) from exc

    try:
        tokenizer = cast("Any", AutoTokenizer).from_pretrained(folder, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(into / _FILE))
    except Exception as exc:
        raise CheckpointMismatch(
            f"{folder}: transformers cannot make a {_FILE} of this vocabulary: {exc}"
        ) from exc
    return into / _FILE
