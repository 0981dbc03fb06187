"""A checkpoint's tokenizer as one `tokenizer.json`, whatever it came as.

Serving reads `tokenizer.json` with the `tokenizers` library alone. A checkpoint that has
only a vocabulary (`vocab.txt`, `sentencepiece.bpe.model`, ...) is converted once, here, by
transformers, which knows every format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from app.core.errors import CheckpointMismatch

_FILE = "tokenizer.json"


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
