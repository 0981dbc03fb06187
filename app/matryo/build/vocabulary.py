"""Whether a `tokenizer.json` can be of the same model as some weights.

A tokenizer of another model gives ids that the weights accept, and vectors that mean nothing. A
GGUF file has the vocabulary itself; files beside other weights may tell special tokens and words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

from matryo.build.checkpoint.onnx import ReadyGraph
from matryo.build.limits import MAX_SPARE_ROWS
from matryo.build.specials import USUAL_NAMES, against_specials, check_added, read_object
from matryo.build.tokenizer import TokenizerFile
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import read_bytes, refusing
from matryo.store.limits import TOKENIZER_MAX_BYTES

_SPACE = "\u2581"  # llama.cpp marks the beginning of a word, BERT its continuation
_NORMAL = 1  # gguf.TokenType
_FILLER = re.compile(r"\[PAD\d+\]|<pad\d+>")

# GGUF's keys of the same roles; it spells "separator" so.
_GGUF_ROLES = {
    "pad": "padding",
    "unk": "unknown",
    "cls": "cls",
    "sep": "seperator",
    "bos": "bos",
    "eos": "eos",
    "mask": "mask",
}


def check_rows(tokenizer: TokenizerFile, n_rows: int, weights: str) -> None:
    """Hold the ids of a tokenizer against the rows of a word table.

    Args:
        tokenizer: the tokenizer.
        n_rows: rows of the table.
        weights: name of the file that holds the table.

    Raises:
        CheckpointMismatch: an id has no row, or far more rows than padding have no id.
    """
    n_ids = tokenizer.last_id + 1
    if n_ids > n_rows:
        check_added(tokenizer, n_rows, f"the word table in {weights}")
        raise CheckpointMismatch(
            f"{tokenizer.path} has ids up to {n_ids - 1}, but the checkpoint's word table, in "
            f"{weights}, has {n_rows} rows: they are of two models. Put the tokenizer.json of the "
            "model beside the weights."
        )
    if n_rows - n_ids > MAX_SPARE_ROWS:
        raise CheckpointMismatch(
            f"{tokenizer.path} has {n_ids} tokens, but the checkpoint's word table, in {weights}, "
            f"has {n_rows} rows, more than {MAX_SPARE_ROWS} too many for padding: they are of two "
            "models. Put the tokenizer.json of the model beside the weights."
        )


def find_contradiction(
    path: Path, weights: Path, suffix: str, ready: ReadyGraph | None
) -> str | None:
    """Why a tokenizer and weights are of two models, as two facts; None if nothing says so.

    Args:
        path: `tokenizer.json`.
        weights: the checkpoint; `vocab.txt` and the JSON files of transformers beside it count.
        suffix: of the weights' format.
        ready: the graph, if the weights are a ready graph.

    Raises:
        CheckpointMismatch: a file is no tokenizer, or no whole checkpoint.
    """
    tokenizer = TokenizerFile(path)
    if suffix == ".gguf" and (reason := _against_gguf(tokenizer, weights)):
        return reason
    if ready and ready.n_rows is not None:
        check_rows(tokenizer, ready.n_rows, ready.path.name)
    folders = [weights.parent, weights.parent.parent] if suffix == ".onnx" else [weights.parent]
    return _against_words(path, tokenizer.vocabulary, folders) or against_specials(
        tokenizer, folders
    )


def _against_gguf(tokenizer: TokenizerFile, weights: Path) -> str | None:
    """The contradiction between a tokenizer and the vocabulary in a GGUF file."""
    from matryo.build.checkpoint.gguf import GgufCheckpoint

    checkpoint = GgufCheckpoint(weights)
    try:
        key = "tokenizer.ggml."
        tokens = checkpoint.texts(f"{key}tokens")
        stated_kinds = checkpoint.integers(f"{key}token_type")
        roles = {
            role: index
            for role, name in _GGUF_ROLES.items()
            if (index := checkpoint.integer(f"{key}{name}_token_id")) is not None
        }
    finally:
        checkpoint.close()
    if not tokens:
        return None
    kinds = [_NORMAL] * len(tokens)
    if stated_kinds is not None and len(stated_kinds) == len(tokens):
        kinds = cast("list[int]", stated_kinds.tolist())
    words = {
        index: token
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _NORMAL and not _FILLER.fullmatch(token)
    }
    path, vocabulary = tokenizer.path, tokenizer.vocabulary
    if reason := _compare(path, vocabulary, words, weights.name, _phantom):
        return reason
    if (n_ids := max(vocabulary.values(), default=-1) + 1) > len(tokens):
        return f"{path} has {n_ids} tokens, but {weights.name} has {len(tokens)}"
    (ends,) = tokenizer.encode([""])
    for index, one, other in ((0, "cls", "bos"), (-1, "sep", "eos")):
        stated = [roles[role] for role in (one, other) if role in roles]
        stated = [index for index in stated if index < len(tokens)]
        if ends and stated and ends[index] not in stated:
            where = "begins" if index == 0 else "ends"
            return (
                f"{path} {where} a text with token {ends[index]}, but {weights.name} has "
                f"token {stated[0]} there"
            )
    for role in ("pad", "unk", "mask"):
        name = next((name for name in USUAL_NAMES[role] if name in vocabulary), None)
        index = roles.get(role, len(tokens))
        if name and index < len(tokens) and vocabulary[name] != index:
            return (
                f"{path} has '{name}' as token {vocabulary[name]}, but {weights.name} has "
                f"token {index} for it"
            )
    return None


def _phantom(token: str) -> str:
    """A token as llama.cpp spells that of BERT."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else f"{_SPACE}{token}"


def _against_words(path: Path, vocabulary: dict[str, int], folders: list[Path]) -> str | None:
    """The contradiction between a tokenizer and a vocabulary beside the weights."""
    for folder in folders:
        lines = folder / "vocab.txt"
        if lines.is_file():
            with refusing(partial(_unreadable, lines)):
                text = read_bytes(lines, TOKENIZER_MAX_BYTES).decode("utf-8", errors="replace")
            words = dict(enumerate(text.split("\n")))
            words = {index: word.removesuffix("\r") for index, word in words.items()}
            words = {index: word for index, word in words.items() if word}
            if reason := _compare(path, vocabulary, words, str(lines)):
                return reason
        table = read_object(folder / "vocab.json")
        words = {index: word for word, index in table.items() if isinstance(index, int)}
        if words and (reason := _compare(path, vocabulary, words, str(folder / "vocab.json"))):
            return reason
    return None


def _unreadable(path: Path, reason: str) -> CheckpointMismatch:
    return CheckpointMismatch(f"{path} is not a vocabulary: {reason}. Remove the file.")


def _compare(
    path: Path,
    vocabulary: dict[str, int],
    words: Mapping[int, str],
    said_by: str,
    spelled: Callable[[str], str] = str,
) -> str | None:
    """The first index at which a tokenizer has another token than `words`, and how many there are.

    Args:
        path: of the tokenizer.
        vocabulary: the tokenizer's ids by token.
        words: the tokens of the other file by id.
        said_by: name of that file.
        spelled: a token of the tokenizer as the other file may spell it.
    """
    tokens = {index: token for token, index in vocabulary.items()}
    off = [
        index
        for index, word in words.items()
        if index not in tokens or word not in (tokens[index], spelled(tokens[index]))
    ]
    if not off:
        return None
    first = min(off)
    ours = f"'{tokens[first]}'" if first in tokens else "nothing"
    return (
        f"{path} has {ours} as token {first}, but {said_by} has '{words[first]}' "
        f"({len(off)} of {len(words)} tokens differ)"
    )
