"""A `tokenizer.json` rebuilt from a GGUF's metadata: WordPiece and unigram.

GGUF keeps the vocabulary and little else; normalisation and templates are those of the two
families that embedders of this kind come from, BERT (uncased) and XLM-R, which is what
llama.cpp assumes as well. Where the model's own tokenizer.json is at hand, it is better.

Source: llama.cpp, conversion/bert.py and src/llama-vocab.cpp; transformers,
convert_slow_tokenizer.py.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import models as _models
from tokenizers import normalizers as _normalizers
from tokenizers import pre_tokenizers as _pre_tokenizers
from tokenizers import processors as _processors

from matryo.build.charsmap import check_charsmap
from matryo.build.checkpoint.gguf import GgufCheckpoint
from matryo.build.limits import GGUF_MAX_CHARSMAP_BYTES
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import refusing

# The package's stubs lack most constructors.
models, normalizers = cast("Any", _models), cast("Any", _normalizers)
pre_tokenizers, processors = cast("Any", _pre_tokenizers), cast("Any", _processors)

_KEY = "tokenizer.ggml."
_SPACE = "\u2581"  # llama.cpp marks the beginning of a word, BERT its continuation
_NORMAL, _UNUSED = 1, 5  # gguf.TokenType
_PENALTY = -10000.0  # llama.cpp's score of a token that was never trained


def rebuild_tokenizer(checkpoint: GgufCheckpoint) -> Tokenizer:
    """The tokenizer that a GGUF describes.

    Raises:
        CheckpointMismatch: it describes none, or one of another family.
    """
    family = checkpoint.text(f"{_KEY}model")
    tokens = checkpoint.texts(f"{_KEY}tokens")
    families = ("bert", "t5")
    if family not in families or not tokens:
        raise CheckpointMismatch(
            f"{checkpoint.path} has a tokenizer of kind {family!r}; known are "
            f"{', '.join(map(repr, families))}. Put the model's tokenizer.json beside it."
        )
    found = checkpoint.integers(f"{_KEY}token_type")
    kinds = [_NORMAL] * len(tokens) if found is None else cast("list[int]", found.tolist())
    if len(kinds) != len(tokens):
        raise CheckpointMismatch(
            f"{checkpoint.path} has {len(tokens)} tokens, but types for {len(kinds)}"
        )
    n_used = len(tokens)
    while n_used > 1 and kinds[n_used - 1] == _UNUSED:  # padding of the embedding table
        n_used -= 1
    tokens, kinds = tokens[:n_used], kinds[:n_used]
    # The library refuses a bad charsmap or vocabulary in ways of its own.
    with refusing(
        lambda reason: CheckpointMismatch(
            f"{checkpoint.path}: no tokenizer can be made of its metadata: {reason}. Put the "
            "model's tokenizer.json beside it."
        )
    ):
        if family == "bert":
            return _word_piece(checkpoint, tokens, kinds)
        return _unigram(checkpoint, tokens)


def _word_piece(checkpoint: GgufCheckpoint, tokens: list[str], kinds: list[int]) -> Tokenizer:
    def spelled(token: str, kind: int) -> str:
        if token.startswith(_SPACE):
            return token[1:]
        special = kind != _NORMAL or (token.startswith("[") and token.endswith("]"))
        return token if special and len(token) > 1 else f"##{token}"

    names = [spelled(token, kind) for token, kind in zip(tokens, kinds, strict=True)]
    vocab = {name: i for i, name in enumerate(names)}
    unk = _special(checkpoint, names, "unknown_token_id", "[UNK]")
    cls = _special(checkpoint, names, "cls_token_id", "[CLS]")
    sep = _special(checkpoint, names, "seperator_token_id", "[SEP]")  # GGUF spells it so
    tokenizer: Any = Tokenizer(models.WordPiece(vocab, unk_token=names[unk]))
    lowercase = checkpoint.flag(f"{_KEY}normalizer.lowercase") is not False
    accents = checkpoint.flag(f"{_KEY}normalizer.strip_accents")  # None: as lowercase
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = _template(names, cls, sep)
    specials = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocab]
    tokenizer.add_special_tokens(specials)
    return cast("Tokenizer", tokenizer)


def _unigram(checkpoint: GgufCheckpoint, tokens: list[str]) -> Tokenizer:
    scores = checkpoint.floats(f"{_KEY}scores")
    if scores is None or len(scores) < len(tokens):
        raise CheckpointMismatch(
            f"{checkpoint.path} has no score for each of its {len(tokens)} tokens"
        )
    unk = _special(checkpoint, tokens, "unknown_token_id", "<unk>")
    bos = _special(checkpoint, tokens, "bos_token_id", "<s>")
    eos = _special(checkpoint, tokens, "eos_token_id", "</s>")
    vocab = [
        (token, float(score))
        for token, score in zip(tokens, np.maximum(scores, _PENALTY), strict=False)
    ]
    tokenizer: Any = Tokenizer(models.Unigram(vocab, unk_id=unk, byte_fallback=False))
    charsmap = checkpoint.integers(f"{_KEY}precompiled_charsmap", most=GGUF_MAX_CHARSMAP_BYTES)
    steps = []
    if charsmap is not None and len(charsmap):
        content = charsmap.astype(np.uint8).tobytes()
        check_charsmap(content)
        steps = [normalizers.Precompiled(content)]
    if checkpoint.flag(f"{_KEY}remove_extra_whitespaces") is not False:
        steps += [normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "never" if checkpoint.flag(f"{_KEY}add_space_prefix") is False else "always"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme),
        ]
    )
    tokenizer.post_processor = _template(tokens, bos, eos)
    for name in ("<s>", "<pad>", "</s>", "<unk>"):
        if name in tokens[:8]:
            tokenizer.add_special_tokens([name])
    if "<mask>" in tokens[-8:]:  # XLM-R's takes the space before it
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return cast("Tokenizer", tokenizer)


def _special(checkpoint: GgufCheckpoint, names: list[str], key: str, usual: str) -> int:
    """Id of a special token: by its key, or by its usual name."""
    found = checkpoint.integer(_KEY + key)
    if found is None and usual in names:
        return names.index(usual)
    if found is None or not 0 <= found < len(names):
        raise CheckpointMismatch(
            f"{checkpoint.path}: {_KEY}{key} is {found}, but there are {len(names)} tokens"
        )
    return found


def _template(names: list[str], first: int, last: int) -> Any:  # noqa: ANN401
    """One text between two special tokens."""
    return processors.TemplateProcessing(
        single=[names[first], "$A", names[last]],
        special_tokens=[(names[first], first), (names[last], last)],
    )
