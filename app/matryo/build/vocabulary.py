"""Whether a `tokenizer.json` can be of the same model as some weights.

A tokenizer of another model gives ids that the weights accept, and vectors that mean nothing. A
GGUF file has the vocabulary itself; files beside other weights may tell special tokens and words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from matryo.build.checkpoint.onnx import ReadyGraph
from matryo.build.limits import MAX_SPARE_ROWS
from matryo.core.errors import CheckpointMismatch

_SPACE = "\u2581"  # llama.cpp marks the beginning of a word, BERT its continuation
_NORMAL = 1  # gguf.TokenType
_FILLER = re.compile(r"\[PAD\d+\]|<pad\d+>")

# Roles of special tokens, and the names that they usually have.
_ROLES: Mapping[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "bos": ("<s>", "[CLS]"),
    "eos": ("</s>", "[SEP]"),
    "mask": ("[MASK]", "<mask>"),
}
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


def read_tokenizer(path: Path) -> Any:  # noqa: ANN401 - the package's stubs lack most methods
    """The tokenizer in a `tokenizer.json`.

    Raises:
        CheckpointMismatch: the file is no tokenizer.
    """
    try:
        return cast("Any", Tokenizer).from_file(str(path))
    except Exception as exc:
        raise CheckpointMismatch(f"{path} is not a tokenizer: {exc}") from exc


def check_rows(path: Path, tokenizer: Any, n_rows: int) -> None:  # noqa: ANN401
    """Hold the ids of a tokenizer against the rows of a word table.

    Raises:
        CheckpointMismatch: an id has no row, or far more rows than padding have no id.
    """
    n_ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if n_ids > n_rows:
        raise CheckpointMismatch(
            f"{path} has ids up to {n_ids - 1}, but the checkpoint's word table has {n_rows} rows: "
            "they are of two models. Put the tokenizer.json of the model beside the weights."
        )
    if n_rows - n_ids > MAX_SPARE_ROWS:
        raise CheckpointMismatch(
            f"{path} has {n_ids} tokens, but the checkpoint's word table has {n_rows} rows, more "
            f"than {MAX_SPARE_ROWS} too many for padding: they are of two models. Put the "
            "tokenizer.json of the model beside the weights."
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
    tokenizer = read_tokenizer(path)
    vocabulary = cast("dict[str, int]", tokenizer.get_vocab())
    if suffix == ".gguf" and (reason := _against_gguf(path, tokenizer, weights)):
        return reason
    if ready and ready.n_rows is not None:
        check_rows(path, tokenizer, ready.n_rows)
    folders = [weights.parent, weights.parent.parent] if suffix == ".onnx" else [weights.parent]
    return _against_words(path, vocabulary, folders) or _against_specials(
        path, tokenizer, vocabulary, folders
    )


def _against_gguf(path: Path, tokenizer: Any, weights: Path) -> str | None:  # noqa: ANN401
    """The contradiction between a tokenizer and the vocabulary in a GGUF file."""
    from matryo.build.checkpoint.gguf import GgufCheckpoint

    checkpoint = GgufCheckpoint(weights)
    try:
        key = "tokenizer.ggml."
        tokens = cast("list[str] | None", checkpoint.metadata(f"{key}tokens"))
        kinds = cast("list[int] | None", checkpoint.metadata(f"{key}token_type"))
        roles = {
            role: cast("object", checkpoint.metadata(f"{key}{name}_token_id"))
            for role, name in _GGUF_ROLES.items()
        }
    finally:
        checkpoint.close()
    if not isinstance(tokens, list) or not tokens:
        return None
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        kinds = [_NORMAL] * len(tokens)
    words = {
        index: token
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _NORMAL and not _FILLER.fullmatch(token)
    }
    vocabulary = cast("dict[str, int]", tokenizer.get_vocab())
    if reason := _compare(path, vocabulary, words, weights.name, _phantom):
        return reason
    if (n_ids := max(vocabulary.values(), default=-1) + 1) > len(tokens):
        return f"{path} has {n_ids} tokens, but {weights.name} has {len(tokens)}"
    ends = cast("list[int]", tokenizer.encode("").ids)
    for index, one, other in ((0, "cls", "bos"), (-1, "sep", "eos")):
        stated = [role for role in (roles[one], roles[other]) if isinstance(role, int)]
        if ends and stated and ends[index] not in stated:
            where = "begins" if index == 0 else "ends"
            return (
                f"{path} {where} a text with token {ends[index]}, but {weights.name} has "
                f"token {stated[0]} there"
            )
    for role in ("pad", "unk", "mask"):
        name = next((name for name in _ROLES[role] if name in vocabulary), None)
        index = roles[role]
        if name and isinstance(index, int) and vocabulary[name] != index:
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
            words = dict(enumerate(lines.read_text("utf-8", errors="replace").split("\n")))
            words = {index: word.removesuffix("\r") for index, word in words.items()}
            words = {index: word for index, word in words.items() if word}
            if reason := _compare(path, vocabulary, words, str(lines)):
                return reason
        table = _json(folder / "vocab.json")
        words = {index: word for word, index in table.items() if isinstance(index, int)}
        if words and (reason := _compare(path, vocabulary, words, str(folder / "vocab.json"))):
            return reason
    return None


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


def _against_specials(
    path: Path,
    tokenizer: Any,  # noqa: ANN401
    vocabulary: dict[str, int],
    folders: list[Path],
) -> str | None:
    """The contradiction between a tokenizer and the special tokens that JSON files name."""
    tokens = {index: token for token, index in vocabulary.items()}
    n_ids = max(tokens, default=-1) + 1
    for folder in folders:
        named: dict[str, str] = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            facts = _json(folder / file)
            for index, content in _added(facts):
                if tokens.get(index) != content:
                    ours = f"'{tokens[index]}'" if index in tokens else "nothing"
                    return (
                        f"{path} has {ours} as token {index}, but {folder / file} has '{content}'"
                    )
            for role in _ROLES:
                name = _content(facts.get(f"{role}_token"))
                if name is None:
                    continue
                named[role] = name
                if name not in vocabulary:
                    return (
                        f"{path} has no token '{name}', but {folder / file} has it as {role}_token"
                    )
        config = _json(folder / "config.json")
        size = config.get("vocab_size")
        if isinstance(size, int) and n_ids > size:
            return (
                f"{path} has ids up to {n_ids - 1}, but {folder / 'config.json'} has "
                f"vocab_size {size}"
            )
        padding = cast("dict[str, Any]", tokenizer.padding or {})
        for role, usual in _ROLES.items():
            index = config.get(f"{role}_token_id")
            candidates = (named.get(role), padding.get("pad_token") if role == "pad" else None)
            name = next((name for name in (*candidates, *usual) if name in vocabulary), None)
            # Configs made from GPT-2's keep its ids, which are beyond the vocabulary.
            if name is None or not isinstance(index, int) or not 0 <= index < n_ids:
                continue
            if vocabulary[name] != index:
                return (
                    f"{path} has '{name}' as token {vocabulary[name]}, but "
                    f"{folder / 'config.json'} has {role}_token_id {index}"
                )
    return None


def _added(facts: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Ids and contents of `added_tokens_decoder` in a `tokenizer_config.json`."""
    table = facts.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return
    for index, token in cast("dict[str, object]", table).items():
        content = _content(token)
        if index.isdecimal() and content is not None:
            yield int(index), content


def _content(token: object) -> str | None:
    """The text of a special token, which is a string or an object with `content`."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file, or anything else in it."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
