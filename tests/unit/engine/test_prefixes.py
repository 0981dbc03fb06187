"""A text is prefixed if the model could not tell the text from a prefixed one; ids and strings agree."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers import models as _models
from tokenizers import normalizers as _normalizers
from tokenizers import pre_tokenizers as _pre_tokenizers
from tokenizers import processors as _processors

from matryo.engine.tokenizer import TextTokenizer

models, normalizers = cast("Any", _models), cast("Any", _normalizers)
pre_tokenizers, processors = cast("Any", _pre_tokenizers), cast("Any", _processors)

NOMIC = ("search_query: ", "search_document: ", "classification: ", "clustering: ")
E5 = ("query: ", "passage: ")
BGE = ("Represent this sentence for searching relevant passages: ",)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ("search", "query", "document", "classification", "clustering", "passage", "sky", "blue")
SIGNS = ":_.,'\"!?-()#"


def word_piece() -> Tokenizer:
    """An uncased tokenizer like BERT's."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *SIGNS]
    pieces += [f"##{letter}" for letter in LETTERS] + ["##s", "the", "##ing"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer: Any = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def unigram() -> Tokenizer:
    """A tokenizer like XLM-R's."""
    space = "\u2581"
    pieces = ["<s>", "<pad>", "</s>", "<unk>", space, *(space + word for word in WORDS), *WORDS]
    pieces += [*LETTERS, *LETTERS.upper(), *SIGNS, *(space + letter for letter in LETTERS)]
    vocab = [(piece, -float(i) / 10) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer: Any = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=space)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    """Both kinds, with the prompts of three models."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made: dict[str, TextTokenizer] = {}
    for name, make, own in (
        ("nomic", word_piece, NOMIC),
        ("e5", word_piece, E5),
        ("bge", word_piece, BGE),
        ("v2-moe", unigram, NOMIC[:2]),
    ):
        path = folder / f"{name}.json"
        make().save(str(path))
        made[name] = TextTokenizer(path, 512, own)
    return made


def ids(tokenizer: TextTokenizer, text: str, prefix: str = "") -> list[int]:
    """Token ids of one text."""
    return tokenizer.encode([text], prefix)[0].ids.tolist()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nomic", "search_query: blue sky"),
        ("nomic", "search_document: blue sky"),
        ("nomic", "search_query:blue sky"),
        ("nomic", "search_query:  blue sky"),
        ("nomic", " search_query: blue sky"),
        ("nomic", "\n\tsearch_query :blue sky"),
        ("nomic", "Search_Query: blue sky"),
        ("nomic", "SEARCH _ QUERY : blue"),
        ("nomic", "séarch_query: blue"),
        ("nomic", "search_query:"),
        ("nomic", "search_query:\u200bblue"),
        ("nomic", "search_query: [MASK]"),
        ("e5", "query:blue"),
        ("e5", "Passage : blue"),
        ("bge", "represent this sentence for searching relevant passages:blue"),
        ("v2-moe", "search_query: blue sky"),
        ("v2-moe", "  search_query:   blue sky"),
        ("v2-moe", "search_query:"),
        ("v2-moe", "ｓｅａｒｃｈ_query: blue"),
    ],
)
def test_prefixed(tokenizers: dict[str, TextTokenizer], name: str, text: str) -> None:
    """Whatever the model reads as a prefixed text keeps its tokens, as a string and as ids."""
    tokenizer = tokenizers[name]
    plain = ids(tokenizer, text)
    for prefix in tokenizer._prefixes._pieces:
        assert ids(tokenizer, text, prefix) == plain
        assert tokenizer.from_ids(plain, prefix).tolist() == plain


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nomic", "blue search_query: sky"),
        ("nomic", "search query: sky"),
        ("nomic", "search_queryx: sky"),
        ("nomic", "xsearch_query: sky"),
        ("nomic", "search_query sky"),
        ("nomic", "search_queries: sky"),
        ("nomic", "'search_query: sky'"),
        ("nomic", "query: sky"),
        ("e5", "search_query: sky"),
        ("e5", "queryx: sky"),
        ("bge", "represent this sentence: sky"),
        ("v2-moe", "search_query:sky"),  # XLM-R tells `sky` from ` sky`
        ("v2-moe", "Search_query: sky"),
        ("v2-moe", "classification: sky"),
        ("nomic", ""),
    ],
)
def test_not_prefixed(tokenizers: dict[str, TextTokenizer], name: str, text: str) -> None:
    """A text that merely resembles or contains a prefix gets one, as a string and as ids."""
    tokenizer = tokenizers[name]
    plain = ids(tokenizer, text)
    for prefix in list(tokenizer._prefixes._pieces):
        whole = ids(tokenizer, prefix + text)
        assert ids(tokenizer, text, prefix) == whole != plain
        assert tokenizer.from_ids(plain, prefix).tolist() == whole
        assert tokenizer.from_ids(plain[1:-1], prefix).tolist() == whole


def test_in_company(tokenizers: dict[str, TextTokenizer]) -> None:
    """Prefixed and bare texts of one request are told apart, in order."""
    tokenizer = tokenizers["nomic"]
    texts = ["blue", "search_query:blue", "sky " * 9000, "search_document: sky", ""]
    found = [encoded.ids.tolist() for encoded in tokenizer.encode(texts, "clustering: ")]
    alone = [ids(tokenizer, text, "clustering: ") for text in texts]
    assert found == alone
    assert found[1] == ids(tokenizer, texts[1])
    assert found[0] == ids(tokenizer, "clustering: blue")


_PIECES = st.one_of(
    st.sampled_from([*WORDS, ":", "_", " ", "  ", "\n", "\u200b", "\u0301", "é", "[MASK]", "<s>"]),
    st.sampled_from([*NOMIC, *E5, *BGE, *(p.rstrip() for p in (*NOMIC, *E5))]),
    st.text(max_size=4),
)
_TEXTS = st.lists(_PIECES, max_size=6).map("".join)


def spellings(text: str) -> Sequence[str]:
    """Other ways to write a text, some of which a tokenizer reads alike."""
    return (
        text.upper(),
        text.title(),
        f"  {text}\n",
        text.replace(": ", ":"),
        text.replace(":", " : "),
        unicodedata.normalize("NFD", text),
        unicodedata.normalize("NFKC", text),
    )


@given(text=_TEXTS, name=st.sampled_from(["nomic", "e5", "bge", "v2-moe"]), n=st.integers(0, 3))
@settings(max_examples=500)
def test_equal_tokens_give_equal_tokens(
    tokenizers: dict[str, TextTokenizer], text: str, name: str, n: int
) -> None:
    """Texts with equal tokens stay equal under every prefix, as strings and as ids."""
    tokenizer = tokenizers[name]
    own = list(tokenizer._prefixes._pieces)
    prefix = own[n % len(own)]
    plain, prefixed = ids(tokenizer, text), ids(tokenizer, text, prefix)
    assert prefixed in (plain, ids(tokenizer, prefix + text))
    assert tokenizer.from_ids(plain, prefix).tolist() == prefixed
    assert ids(tokenizer, prefix + text, prefix) == ids(tokenizer, prefix + text)
    for other in spellings(text):
        if ids(tokenizer, other) == plain:
            assert ids(tokenizer, other, prefix) == prefixed


class TestUnknown:
    """What the vocabulary lacks has one id."""

    def test_ids(self, tokenizers: dict[str, TextTokenizer]) -> None:
        """The id is that of the model's own unknown token."""
        for name, text in (("nomic", "\u4f60\u597d"), ("v2-moe", "\u4f60")):
            tokenizer = tokenizers[name]
            assert tokenizer.unknown_id in ids(tokenizer, text)
            assert tokenizer.unknown_id not in ids(tokenizer, "blue sky")
        assert tokenizers["nomic"].unknown_id in ids(tokenizers["nomic"], "a" * 101)

    def test_a_tokenizer_that_lacks_nothing(self, tmp_path: Path) -> None:
        """A byte-level tokenizer has no such id."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        made: Any = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.save(str(tmp_path / "bytes.json"))
        assert TextTokenizer(tmp_path / "bytes.json", 64).unknown_id is None
