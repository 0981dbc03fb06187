"""The longest text, and what the tokenizer does to a text, as the tokenizer's files say.

Source: sentence-transformers 6, `base/modules/transformer.py`; transformers, the tokenizers' own
`tokenizer_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from matryo.build.derive.files import CheckpointLayout
from matryo.build.derive.said import JsonFile, Said
from matryo.core.errors import CheckpointMismatch
from matryo.store.limits import TOKENIZER_MAX_BYTES

LIBRARY_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
)
"""Names that sentence-transformers gives the file of its own settings of a transformer."""

# transformers writes 1e30 for a tokenizer that knows no limit.
_NO_LIMIT = 1 << 24
# Keys of tokenizer_config.json, and of a BertNormalizer in tokenizer.json, that mean the same.
_NORMALIZING = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def token_limit(layout: CheckpointLayout, positions: Said | None) -> Said:
    """The most tokens of a text.

    Args:
        layout: the checkpoint.
        positions: how many tokens the model has positions for; None for any number.

    Raises:
        CheckpointMismatch: no file says it, or a file has another kind of value.
    """
    found = [positions] if positions else []
    for name in LIBRARY_CONFIGS:
        file = layout.inner_json(name)
        if file.exists:
            found += _limit(file, "max_seq_length")
            break
    found += _limit(layout.inner_json("tokenizer_config.json"), "model_max_length")
    if not found:
        raise CheckpointMismatch(
            f"{layout.root}: no file says how long a text may be. Put the model's own config.json "
            "and tokenizer_config.json beside the weights, or write a model.toml with matryo add."
        )
    return min(found, key=lambda said: said.value)


def _limit(file: JsonFile, key: str) -> list[Said]:
    said = file.said(key)
    if said is None or said.value is None:
        return []
    if (
        isinstance(said.value, bool)
        or not isinstance(said.value, int | float)
        or not said.value >= 1
    ):
        raise file.refuse(said, "must be a number of tokens, 1 or more")
    if said.value >= _NO_LIMIT:
        return []
    return [Said(int(said.value), said.file, said.key)]


def own_truncation(layout: CheckpointLayout) -> Said | None:
    """The length that `tokenizer.json` itself cuts texts to; None if the file cuts none.

    sentence-transformers obeys it for a static table alone.
    """
    file = _tokenizer(layout)
    said = file.said("truncation.max_length")
    return said if said and type(said.value) is int and said.value > 0 else None


def lowercases(layout: CheckpointLayout) -> Said | None:
    """Whether a text is put in lower case before a tokenizer that does not do so by itself."""
    for name in LIBRARY_CONFIGS:
        said = layout.inner_json(name).said("do_lower_case")
        if said is not None and said.value is True:
            return None if _has_lowercase(layout) else said
    return None


def _has_lowercase(layout: CheckpointLayout) -> bool:
    return any(
        step.get("type") == "Lowercase" or step.get("lowercase") is True
        for step in _normalizers(layout)
    )


def _tokenizer(layout: CheckpointLayout) -> JsonFile:
    return JsonFile(layout.root / layout.inner, "tokenizer.json", TOKENIZER_MAX_BYTES)


def _normalizers(layout: CheckpointLayout) -> Iterator[Mapping[str, Any]]:
    """The steps of the normalizer in `tokenizer.json`."""
    normalizer = _tokenizer(layout).values.get("normalizer")
    if isinstance(normalizer, dict):
        table = cast("dict[str, Any]", normalizer)
        steps = table.get("normalizers") if table.get("type") == "Sequence" else [table]
        if isinstance(steps, list):
            yield from (
                cast("dict[str, Any]", step)
                for step in cast("list[object]", steps)
                if isinstance(step, dict)
            )


def tokenizer_contradictions(layout: CheckpointLayout) -> Iterator[str]:
    """What `tokenizer_config.json` says of the normalizer that `tokenizer.json` contradicts."""
    config = layout.inner_json("tokenizer_config.json")
    steps = [step for step in _normalizers(layout) if step.get("type") == "BertNormalizer"]
    own: Mapping[str, Any] = steps[0] if steps else {}
    for theirs, ours in _NORMALIZING.items():
        said = config.said(theirs)
        if said is None or said.value is None or ours not in own:
            continue
        found = own[ours]
        if ours == "strip_accents" and found is None:  # it then does as lowercase says
            found = own.get("lowercase")
        if found != said.value:
            path = _tokenizer(layout).path
            yield (
                f"{config.path} has {theirs} {json.dumps(said.value)}, but {path} has normalizer."
                f"{ours} {json.dumps(own[ours])}"
            )
