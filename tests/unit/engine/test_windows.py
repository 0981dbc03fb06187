"""Of a text over the limit, the ids that are kept are those of the whole text, read or not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from matryo.engine.tokenizer import Side, TextTokenizer, most_chars
from tests.checkpoints import make_tokenizer

LIMIT, PREFIX = 20, "the sky: "
SPLIT_LIKE_CL100K = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS_BEFORE_A_SIGN = r"a(?=[^!]*!)| ?\p{L}+|!"
# With `aa` a run of one letter has equal readings, and the length of the run decides.
PIECES = [
    *(("<unk>", 0.0), ("\u2581", -3.0), ("\u2581sky", -2.0), ("\u2581the", -2.0), ("sk", -2.5)),
    *(("y", -4.0), ("ab", -3.0), ("a", -4.0), ("b", -4.0), ("e", -4.0), ("aa", -5.0)),
]


def _set(tokenizer: Tokenizer, **parts: object) -> Tokenizer:
    """The tokenizer with these parts; the library's types do not know that they can be set."""
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def unigram(*, split: bool = True) -> Tokenizer:
    """A SentencePiece tokenizer, as of multilingual models."""
    return _set(
        Tokenizer(models.Unigram(PIECES, 0, False)),
        normalizer=normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        ),
        pre_tokenizer=pre_tokenizers.Metaspace(split=split),
        post_processor=processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        ),
    )


def byte_level(*steps: object) -> Tokenizer:
    """A byte-level BPE tokenizer with these pre-tokenizers; None for the library's usual one."""
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps)
    tokenizer = _set(
        Tokenizer(models.BPE()),
        pre_tokenizer=pre_tokenizers.Sequence([*cast("Any", steps), last]),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the sky is blue, aaab 1234567 e\u0301 \u4e00"] * 9, trainer)
    return tokenizer


def split_by(pattern: str) -> Tokenizer:
    """A byte-level BPE tokenizer that splits by a regular expression."""
    return byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"))


def with_long_added_token() -> Tokenizer:
    """A BERT tokenizer with an added token of many words."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("the sky " * 40, normalized=False)])
    return tokenizer


def whole_word_runs() -> Tokenizer:
    """A tokenizer whose words depend on what is any distance behind."""
    return _set(
        split_by("a+b|\\s?[^\\s]"),
        normalizer=normalizers.Replace("aa", "b"),
    )


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "bert": make_tokenizer,
    "unigram": unigram,
    "unigram of the whole text": lambda: unigram(split=False),
    "byte-level BPE": byte_level,
    "BPE like cl100k": lambda: split_by(SPLIT_LIKE_CL100K),
    "letters before a sign": lambda: split_by(LETTERS_BEFORE_A_SIGN),
    "BPE without words": lambda: _set(byte_level(), pre_tokenizer=None),
    "a long added token": with_long_added_token,
    "runs": whole_word_runs,
}


def loaded(tokenizer: Tokenizer, **options: Any) -> TextTokenizer:
    """The tokenizer, read from its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return TextTokenizer(path, LIMIT, **options)


READ = {name: loaded(make()) for name, make in MAKERS.items()}
WHOLE = {name: make() for name, make in MAKERS.items()}
for one in WHOLE.values():
    one.no_truncation()
    one.no_padding()

PARTS = [
    *("sky ", "the sky: ", " ", "aab", "\u4e00", "a", "\n", "blue.", "e\u0301", "1", "12", "!"),
    *("aab ", "the sky is, 1234567 ", "\u0301", "e \u0301", "[SEP]", "\u4e00\u3002", "\r\n "),
    *("12 ", "\t", "sky", "aaa", "the sky ", "ab"),
]
EDGES = [6 * (LIMIT + 256), 24 * (LIMIT + 256)]


@st.composite
def long_texts(draw: st.DrawFn) -> list[str]:
    """Parts of a text with few tokens, or many, before one of the windows ends."""
    filler = draw(st.sampled_from(PARTS))
    n_before = draw(st.sampled_from(EDGES)) - draw(st.integers(0, 150))
    first = filler * (n_before // len(filler))
    some = st.tuples(st.sampled_from(PARTS), st.one_of(st.integers(1, 40), st.integers(1, 3000)))
    rest = draw(st.lists(some, min_size=1, max_size=5))
    return [first, *(part * n for part, n in rest)]


def _check(name: str, text: str, prefix: str, side: Side) -> None:
    """Hold the ids of a text against those of the library."""
    tokenizer = READ[name]
    whole: list[int] = WHOLE[name].encode(prefix + text).ids
    expected = tokenizer.cut(np.array(whole, np.int64), side)
    (encoded,) = tokenizer.encode([text], prefix, side)
    assert np.array_equal(tokenizer.cut(encoded.ids, side), expected)
    if encoded.exact:
        assert encoded.ids.tolist() == whole
    else:
        assert encoded.n_tokens > LIMIT


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=30, deadline=None)
@given(long_texts(), st.sampled_from(["", PREFIX]), st.sampled_from(["start", "end"]))
def test_windows_change_no_ids(name: str, runs: list[str], prefix: str, side: Side) -> None:
    """The ids that are kept are those that cutting the ids of the whole text keeps."""
    text = "".join(runs)[: most_chars(LIMIT)]
    if side == "end":
        text = "".join(reversed(runs))[-most_chars(LIMIT) :]
    _check(name, text, prefix, side)


@pytest.mark.parametrize(
    ("name", "text", "side"),
    [
        # The window has 60 pieces of a word that is unknown as a whole.
        ("bert", " " * (EDGES[0] - 60) + "a" * 5000, "start"),
        ("bert", "a" * 5000 + " " * (EDGES[0] - 60), "end"),
        # The window has 50 of the words that are one token together.
        ("a long added token", " " * (EDGES[0] - 200) + "the sky " * 40 + "blue", "start"),
        ("a long added token", "blue" + "the sky " * 40 + " " * (EDGES[0] - 200), "end"),
        # A group of three digits begins at the first digit.
        ("BPE like cl100k", "12" * 4001, "end"),
        # The sign at the end decides how all letters are read.
        ("letters before a sign", "aab sky " * 1000 + "!", "start"),
        ("unigram", "a" * 4001 + " sky", "start"),
        ("unigram of the whole text", "a" * 4001 + " sky", "start"),
        ("runs", "aab" * 3000, "end"),
    ],
)
def test_rules_that_look_far(name: str, text: str, side: Side) -> None:
    """No window is used where what lies outside the window decides."""
    _check(name, text, "", side)


def _n_read(name: str, text: str, side: Side, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters that the library tokenises of a text."""
    tokenizer, library, n_read = READ[name], READ[name]._tokenizer, 0

    class Recorder:
        def __getattr__(self, name: str) -> Callable[[Sequence[str]], Any]:
            def encode(texts: Sequence[str]) -> object:
                nonlocal n_read
                n_read += sum(map(len, texts))
                return getattr(library, name)(texts)

            return encode

    with monkeypatch.context() as patched:
        patched.setattr(tokenizer, "_tokenizer", Recorder())
        tokenizer.encode([text], "", side)
    return n_read


@pytest.mark.parametrize("name", ["bert", "unigram", "byte-level BPE", "BPE like cl100k"])
@pytest.mark.parametrize("side", ["start", "end"])
def test_usual_text_is_read_up_to_the_limit(
    name: str, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of usual text, little more is read than the limit holds, at either end."""
    text = "the sky is blue, the sea is not; " * 1000
    assert _n_read(name, text, side, monkeypatch) < 2 * 8 * (LIMIT + 256)


def test_ideographs_are_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT's tokenizers split between ideographs: a text without blanks has windows, too."""
    assert _n_read("bert", "\u4e00" * 30_000, "start", monkeypatch) < 8 * (LIMIT + 256)


@pytest.mark.parametrize("name", ["unigram of the whole text", "BPE without words"])
def test_texts_without_words_are_read_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that takes a text for one word reads all of the text."""
    assert _n_read(name, "the sky " * 3000, "start", monkeypatch) == 8 * 3000


def test_unknown_tokens_leave_enough() -> None:
    """Where unknown tokens are left out, as many known ones are read as the limit holds."""
    text = "\u2603 " * 4000 + "the sky is blue " * 2000
    tokenizer = loaded(make_tokenizer(), add_special_tokens=False, drop_unknown=True)
    (encoded,) = tokenizer.encode([text])
    assert (
        tokenizer.cut(encoded.ids).tolist()
        == tokenizer.encode(["the sky is blue " * 5])[0].ids.tolist()
    )
    assert encoded.n_dropped == 4000
