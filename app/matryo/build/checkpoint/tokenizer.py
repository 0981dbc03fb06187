"""Finds or makes the `tokenizer.json` of a checkpoint.

Serving reads `tokenizer.json` with the `tokenizers` library alone. A checkpoint that has
only a vocabulary (`vocab.txt`, `sentencepiece.bpe.model`, ...) is converted once, here, by
transformers, which knows every format; one in GGUF has it in its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matryo.catalog.manifest import VOCABULARIES
from matryo.core.errors import CheckpointMismatch
from matryo.core.progress import Reporter
from matryo.core.untrusted import refusing, silent
from matryo.store.limits import TOKENIZER_MAX_BYTES

_FILE = "tokenizer.json"


SETTINGS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that transformers reads beside these."""


@dataclass(frozen=True, slots=True)
class FoundTokenizer:
    """A `tokenizer.json`, and where it is from.

    Attributes:
        path: of the file.
        made_of: the user's files that it was made of, itself if it was there.
        published: it is the one of the published checkpoint in the store.
    """

    path: Path
    made_of: tuple[Path, ...] = ()
    published: bool = False

    @property
    def given(self) -> bool:
        """Whether it was a file already, and not made from the checkpoint's own vocabulary."""
        return self.published or self.path in self.made_of


def find_tokenizer(
    weights: Path, suffix: str, stored: Path, into: Path, reporter: Reporter
) -> FoundTokenizer:
    """The tokenizer of a checkpoint.

    The file beside the weights comes first, then the one of the published checkpoint. Without
    either, one is made from the checkpoint's vocabulary. If the weights are a link, the folder of
    the link is beside them, and then the folder of its target.

    Args:
        weights: a checkpoint's file.
        suffix: of its format.
        stored: folder of the published checkpoint in the store; may not exist.
        into: folder of a tokenizer that has to be made.
        reporter: takes a sentence about a tokenizer that is not beside the weights.

    Raises:
        CheckpointMismatch: there is none, and none can be made.
    """
    beside = list(dict.fromkeys((weights.parent, weights.resolve().parent)))
    if suffix == ".safetensors":
        folder = next((path for path in beside if (path / _FILE).is_file()), beside[0])
        return tokenizer_json(folder, into)
    # Exports often lie in a folder of their own, onnx/model.onnx, below the tokenizer.
    if suffix == ".onnx":
        beside = [folder for path in beside for folder in (path, path.parent)]
    for folder in (*beside, stored):
        if (folder / _FILE).is_file():
            reporter.say(f"tokenizer: {folder / _FILE}")
            published = folder == stored
            return FoundTokenizer(
                folder / _FILE, () if published else (folder / _FILE,), published=published
            )
    if suffix != ".gguf":
        raise CheckpointMismatch(
            f"there is no {_FILE} beside {weights}, nor a published one in {stored}; put the "
            "model's there, or run matryo pull first"
        )
    return rebuild_from_gguf(weights, into, reporter)


def rebuild_from_gguf(weights: Path, into: Path, reporter: Reporter) -> FoundTokenizer:
    """The tokenizer that the metadata of a GGUF file describe, made in `into`.

    Raises:
        CheckpointMismatch: they describe none that is known.
    """
    from matryo.build.checkpoint.gguf import GgufCheckpoint
    from matryo.build.checkpoint.gguf_tokenizer import rebuild_tokenizer

    checkpoint = GgufCheckpoint(weights)
    with (
        refusing(
            lambda reason: CheckpointMismatch(
                f"{weights}: no tokenizer can be made of its metadata: {reason}. Put the model's "
                f"{_FILE} beside it."
            ),
        ),
        silent(),
    ):
        cast("Any", rebuild_tokenizer(checkpoint)).save(str(into / _FILE))
    checkpoint.close()
    reporter.say(f"tokenizer: rebuilt from the metadata of {weights.name}")
    return FoundTokenizer(into / _FILE)


def tokenizer_json(folder: Path, into: Path) -> FoundTokenizer:
    """The checkpoint's `tokenizer.json`, made in `into` if the folder has none.

    Raises:
        CheckpointMismatch: there is none, and transformers cannot make one.
    """
    path = folder / _FILE
    if path.is_file():
        return FoundTokenizer(path, (path,))
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise CheckpointMismatch(
            f"{folder} has no {_FILE}, nor a vocabulary to make one from "
            f"({', '.join(sorted(VOCABULARIES))}); put the model's {_FILE} there"
        )
    try:
        from transformers import AutoTokenizer  # 1.5 s, and rarely needed
    except ImportError as exc:  # the container image leaves it out
        raise CheckpointMismatch(
            f"{folder} has no {_FILE}, and making one of its vocabulary needs transformers; "
            "install it, or put the model's tokenizer.json there"
        ) from exc

    made_of = [
        path for name in (*sorted(VOCABULARIES), *SETTINGS) if (path := folder / name).is_file()
    ]
    with refusing(
        lambda reason: CheckpointMismatch(
            f"{folder}: transformers cannot make a {_FILE} of this vocabulary: {reason}. Put the "
            f"model's {_FILE} there."
        )
    ):
        for path in made_of:
            if (n_bytes := path.stat().st_size) > TOKENIZER_MAX_BYTES:
                raise ValueError(
                    f"{path.name} has {n_bytes:,} bytes, more than {TOKENIZER_MAX_BYTES:,}"
                )
        tokenizer = cast("Any", AutoTokenizer).from_pretrained(folder, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(into / _FILE))
    return FoundTokenizer(into / _FILE, tuple(made_of))
