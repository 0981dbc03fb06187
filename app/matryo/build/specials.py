"""Special tokens that the JSON files of transformers name, held against a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from matryo.build.arch import PAD_FIRST
from matryo.build.limits import FACTS_MAX_BYTES
from matryo.build.tokenizer import TokenizerFile
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import read_json

_ID_DIGITS = 20
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "bos": ("<s>",),
    "eos": ("</s>",),
    "mask": ("[MASK]", "<mask>"),
}
"""The names that special tokens usually have, by role."""


def against_specials(tokenizer: TokenizerFile, folders: Sequence[Path]) -> str | None:
    """The contradiction between a tokenizer and the JSON files in `folders`; None if there is none.

    Args:
        tokenizer: the tokenizer.
        folders: of the weights.
    """
    path, vocabulary = tokenizer.path, tokenizer.vocabulary
    for folder in folders:
        size = read_object(folder / "config.json").get("vocab_size")
        if isinstance(size, int):
            check_added(tokenizer, size, f"vocab_size in {folder / 'config.json'}")
        named: dict[str, str] = {}
        for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
            facts = read_object(file)
            if reason := _other_added(path, vocabulary, file, facts):
                return reason
            named |= _named(facts)
            if lacking := [role for role, name in named.items() if name not in vocabulary]:
                role = lacking[0]
                return f"{path} has no token '{named[role]}', but {file} has it as {role}_token"
        if tokenizer.pad_token is not None:
            named.setdefault("pad", tokenizer.pad_token)
        if reason := _other_ids(path, vocabulary, folder / "config.json", named):
            return reason
    return None


def check_added(tokenizer: TokenizerFile, n_rows: int, table: str) -> None:
    """Name the usual cause if the ids without a row are those of added tokens.

    Args:
        tokenizer: the tokenizer.
        n_rows: rows of the word table.
        table: what says so, in words.

    Raises:
        CheckpointMismatch: every id without a row is that of an added token.
    """
    late = [name for name, index in tokenizer.vocabulary.items() if index >= n_rows]
    if late and tokenizer.added.issuperset(late):
        raise CheckpointMismatch(
            f"{tokenizer.path} has {len(late)} added tokens, such as '{late[0][:40]}', but {table} "
            f"has {n_rows} rows: tokens were added and the model was not resized. Call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model again, or take the "
            "tokens out of the tokenizer."
        )


def _other_added(
    path: Path, vocabulary: Mapping[str, int], file: Path, facts: Mapping[str, Any]
) -> str | None:
    """The first token of `added_tokens_decoder` that the tokenizer has under another id."""
    tokens = {index: token for token, index in vocabulary.items()}
    for index, content in _added(facts):
        if tokens.get(index) != content:
            ours = f"'{tokens[index]}'" if index in tokens else "nothing"
            return f"{path} has {ours} as token {index}, but {file} has '{content}'"
    return None


def _other_ids(
    path: Path, vocabulary: Mapping[str, int], file: Path, named: Mapping[str, str]
) -> str | None:
    """The first id in a `config.json` that the tokenizer contradicts.

    Args:
        path: of the tokenizer.
        vocabulary: the tokenizer's ids by token.
        file: `config.json`.
        named: special tokens by role, where a file names them.
    """
    config = read_object(file)
    n_ids = max(vocabulary.values(), default=-1) + 1
    size = config.get("vocab_size")
    if isinstance(size, int) and n_ids > size:
        return f"{path} has ids up to {n_ids - 1}, but {file} has vocab_size {size}"
    for role, usual in USUAL_NAMES.items():
        index = config.get(f"{role}_token_id")
        names = (named[role],) if role in named else usual
        name = next((name for name in names if name in vocabulary), None)
        # Configs made from GPT-2's keep its ids, which are beyond the vocabulary.
        if name is None or not isinstance(index, int) or not 0 <= index < n_ids:
            continue
        # transformers gives these models 1 by itself, whatever their tokenizer has.
        if role == "pad" and index == 1 and config.get("model_type") in PAD_FIRST:
            continue
        if vocabulary[name] != index:
            return (
                f"{path} has '{name}' as token {vocabulary[name]}, but {file} has "
                f"{role}_token_id {index}"
            )
    return None


def _named(facts: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by role, as a JSON file names them."""
    found = {role: _content(facts.get(f"{role}_token")) for role in USUAL_NAMES}
    return {role: name for role, name in found.items() if name is not None}


def _added(facts: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Ids and contents of `added_tokens_decoder` in a `tokenizer_config.json`."""
    table = facts.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return
    for index, token in cast("dict[str, object]", table).items():
        content = _content(token)
        if index.isdecimal() and len(index) <= _ID_DIGITS and content is not None:
            yield int(index), content


def _content(token: object) -> str | None:
    """The text of a special token, which is a string or an object with `content`."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file, or anything else in it."""
    if not path.is_file():
        return {}
    try:
        found = read_json(path, FACTS_MAX_BYTES)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
