"""Token ids are the model's own, without the truncation and padding of tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from matryo.core.errors import ArtifactDamaged, InferenceFailed
from matryo.engine.tokenizer import TextTokenizer, most_chars
from tests.checkpoints import make_tokenizer

CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """The tiny tokenizer, with truncation and padding to 16 in its file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer().save(str(path))
    return TextTokenizer(path, max_tokens=20, prefixes=("the sky: ", "grass is "))


def test_files_truncation_and_padding_are_off(tokenizer: TextTokenizer) -> None:
    """Truncation and padding in the file have no effect, such as to 128 tokens in MiniLM's file."""
    short, long = tokenizer.encode(["the sky", "the sky is blue " * 10])
    assert short.n_tokens == 4
    assert long.n_tokens == 42
    assert long.exact


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\x00", "\ufeff", "\u0301"])
def test_texts_of_nothing(tokenizer: TextTokenizer, text: str) -> None:
    """An empty text has its special tokens."""
    (encoded,) = tokenizer.encode([text])
    assert encoded.ids[0] == CLS
    assert encoded.ids[-1] == SEP


def test_cut_keeps_the_end_token(tokenizer: TextTokenizer) -> None:
    """Cutting removes tokens of the text, and keeps the special tokens at the end."""
    (encoded,) = tokenizer.encode(["the sky is blue " * 10])
    cut = tokenizer.cut(encoded.ids)
    assert len(cut) == 20
    assert np.array_equal(cut[:-1], encoded.ids[:19])
    assert cut[-1] == SEP
    assert np.array_equal(tokenizer.cut(cut), cut)


def test_cut_is_the_librarys(tokenizer: TextTokenizer) -> None:
    """A cut text has the ids that the library's own truncation gives."""
    other = make_tokenizer()
    other.no_padding()
    other.enable_truncation(20)
    text = "green grass is the blue sky: " * 9
    (encoded,) = tokenizer.encode([text])
    assert tokenizer.cut(encoded.ids).tolist() == other.encode(text).ids


def test_huge_texts_are_judged_by_their_head(tokenizer: TextTokenizer) -> None:
    """A text far over the limit is not tokenised to its end, and its cut ids are the same."""
    text = "blue sky " * 100_000
    (encoded,) = tokenizer.encode([text])
    assert not encoded.exact
    assert 20 < encoded.n_tokens < 3000
    (whole,) = tokenizer.encode([text[:600]])
    assert np.array_equal(tokenizer.cut(encoded.ids), tokenizer.cut(whole.ids))


@pytest.mark.parametrize("filler", [" ", "a", "\n", "\u200b", "\u0301"])
def test_texts_are_read_to_a_bound(
    tokenizer: TextTokenizer, filler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of blanks or one endless word, the tokenizer reads no more than the bound, and says so."""
    n_read: list[int] = []
    library = tokenizer._tokenizer

    class Recorder:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            n_read.extend(map(len, texts))
            return library.encode_batch_fast(texts)

        def encode_batch(self, texts: list[str]) -> Any:
            n_read.extend(map(len, texts))
            return library.encode_batch(texts)

    monkeypatch.setattr(tokenizer, "_tokenizer", Recorder())
    most = most_chars(20)
    for prefix in ("", "the sky: "):
        (encoded,) = tokenizer.encode([filler * 2_000_000 + "sky"], prefix)
        assert not encoded.exact
        assert encoded.unread == 2_000_003 - most or encoded.n_tokens > 20
    assert max(n_read) <= most + len("the sky: ")
    assert sum(n_read) < 3 * most


def test_texts_within_the_bound_are_read_whole(tokenizer: TextTokenizer) -> None:
    """A text of mostly blanks that is as long as the bound is tokenised to its end."""
    most = most_chars(20)
    (encoded,) = tokenizer.encode([" " * (most - 3) + "sky"])
    assert encoded.exact
    assert encoded.n_tokens == 3
    (encoded,) = tokenizer.encode([" " * (most - 3) + "sky"], "the sky: ")
    assert encoded.exact
    (encoded,) = tokenizer.encode([" " * (most - 2) + "sky"])
    assert encoded.unread == 1


def test_order_is_kept(tokenizer: TextTokenizer) -> None:
    """Texts come back in order, long ones among short ones."""
    texts = ["sky", "blue sky " * 1000, "the", "", "grass"]
    together = tokenizer.encode(texts)
    for text, encoded in zip(texts, together, strict=True):
        assert np.array_equal(encoded.ids, tokenizer.encode([text])[0].ids)


def test_few_texts_wait_for_nobody(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few texts are tokenised one by one on the caller's thread, behind no other caller's batch."""
    sizes: list[int] = []
    encode = tokenizer._tokenizer.encode_batch_fast

    class Recorder:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            sizes.append(len(texts))
            return encode(texts)

    expected = tokenizer.encode(["sky", "blue"] * 8, "the sky: ")
    monkeypatch.setattr(tokenizer, "_tokenizer", Recorder())
    few = tokenizer.encode(["sky", "blue"] * 4, "the sky: ")
    assert set(sizes) == {1}
    tokenizer.encode(["sky", "blue"] * 8)
    assert sizes[-1] == 16
    assert tokenizer.encode([]) == []
    for one, other in zip(few, expected, strict=False):
        assert np.array_equal(one.ids, other.ids)


def test_not_a_tokenizer(tmp_path: Path) -> None:
    """A file that is not a tokenizer is named in the error."""
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ArtifactDamaged, match=r"tokenizer\.json"):
        TextTokenizer(path, 20)


class TestFromIds:
    """The ids that a caller sends become the ids of the same text as a string."""

    PREFIX, OTHER = "the sky: ", "grass is "

    def text_ids(self, tokenizer: TextTokenizer, text: str) -> list[int]:
        """The ids of a text, special tokens included."""
        return tokenizer.encode([text])[0].ids.tolist()

    @pytest.mark.parametrize("bare", [False, True])
    def test_with_or_without_special_tokens(self, tokenizer: TextTokenizer, bare: bool) -> None:
        """The result has the special tokens once, whether the caller sent them or not."""
        whole = self.text_ids(tokenizer, "blue grass")
        given = whole[1:-1] if bare else whole
        assert tokenizer.from_ids(given).tolist() == whole
        prefixed = self.text_ids(tokenizer, self.PREFIX + "blue grass")
        assert tokenizer.from_ids(given, self.PREFIX).tolist() == prefixed

    def test_own_prefix_is_left(self, tokenizer: TextTokenizer) -> None:
        """A text that begins with one of the model's prefixes gets no other prefix."""
        for prefix in (self.PREFIX, self.OTHER):
            given = self.text_ids(tokenizer, prefix + "blue")
            found = tokenizer.from_ids(given, self.PREFIX)
            assert found.tolist() == given

    def test_nothing_but_special_tokens(self, tokenizer: TextTokenizer) -> None:
        """An array of them alone is an empty text."""
        assert tokenizer.from_ids([CLS, SEP]).tolist() == [CLS, SEP]
        assert tokenizer.from_ids([SEP]).tolist() == [CLS, SEP]


class TestBareTexts:
    """A text may be used without special tokens, and without unknown ones."""

    TEXT = "the \u2603 sky is \u2603"

    def make(self, tmp_path: Path, tokenizer: Tokenizer, *, drop: bool) -> TextTokenizer:
        """A tokenizer that adds no special tokens."""
        path = tmp_path / "tokenizer.json"
        tokenizer.save(str(path))
        return TextTokenizer(path, 20, ("the sky: ",), add_special_tokens=False, drop_unknown=drop)

    def test_special_tokens_are_not_added(self, tmp_path: Path) -> None:
        """The ids are those of the library without special tokens, whether cut or prefixed."""
        tokenizer = self.make(tmp_path, make_tokenizer(), drop=False)
        library = make_tokenizer()
        library.no_padding()
        library.no_truncation()
        for text in (self.TEXT, "[SEP] sky", "", " ", "blue " * 5000):
            expected = library.encode(text, add_special_tokens=False).ids
            (found,) = tokenizer.encode([text])
            assert found.ids.tolist() == expected or not found.exact
            assert tokenizer.cut(found.ids).tolist() == expected[:20]
        (found,) = tokenizer.encode(["blue"], "the sky: ")
        expected = library.encode("the sky: blue", add_special_tokens=False).ids
        assert found.ids.tolist() == expected
        assert tokenizer.from_ids([7], "the sky: ").tolist() == expected

    def test_unknown_tokens_are_kept_or_dropped(self, tmp_path: Path) -> None:
        """Unknown tokens are kept unless the model leaves them out, which the result says."""
        (kept,) = self.make(tmp_path, make_tokenizer(), drop=False).encode([self.TEXT])
        assert (kept.ids.tolist(), kept.n_dropped) == ([4, 1, 5, 6, 1], 0)
        tokenizer = self.make(tmp_path, make_tokenizer(), drop=True)
        (found,) = tokenizer.encode([self.TEXT])
        assert (found.ids.tolist(), found.n_dropped) == ([4, 5, 6], 2)
        assert tokenizer.from_ids([4, 1, 5]).tolist() == [4, 5]
        (prefixed,) = tokenizer.encode(["\u2603"], "the sky: ")
        assert (prefixed.ids.tolist(), prefixed.n_dropped) == ([4, 5, 14], 1)

    def test_unknown_piece_of_a_unigram_model(self, tmp_path: Path) -> None:
        """A unigram model's unknown piece is the one that its file states, whatever its name."""
        pieces = [("<unk>", -1.0), ("odd", 0.0), ("sky", -1.0)]
        tokenizer = self.make(tmp_path, Tokenizer(models.Unigram(pieces, 1, False)), drop=True)
        assert tokenizer.encode(["sky\u2603"])[0].ids.tolist() == [2]

    def test_a_tokenizer_without_an_unknown_piece(self, tmp_path: Path) -> None:
        """Nothing is dropped if the tokenizer has no unknown piece."""
        bare = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
        tokenizer = self.make(tmp_path, bare, drop=True)
        assert tokenizer.encode(["ab"])[0].ids.tolist() == [0, 1]


class PanicException(BaseException):
    """What a library in Rust raises; its real class cannot be imported."""


@pytest.mark.parametrize("fault", [PanicException("boom"), ValueError("boom"), MemoryError()])
def test_a_library_that_fails(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    """A text that the library fails at ends in one error of ours, a panic included."""

    def fail(_: object) -> None:
        raise fault

    monkeypatch.setattr(tokenizer, "_encode_all", fail)
    for prefix in ("", "the sky: "):
        with pytest.raises(InferenceFailed, match="the tokenizer failed"):
            tokenizer.encode(["a"], prefix)


def test_an_interrupt_is_no_fault(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C passes through."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_encode_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode(["a"])


@pytest.mark.parametrize("prefix", ["", "the sky: "])
def test_the_end_is_kept_as_the_library_keeps_it(tokenizer: TextTokenizer, prefix: str) -> None:
    """A text cut at its beginning has the ids that the library's truncation at the left gives."""
    other = make_tokenizer()
    other.no_padding()
    other.enable_truncation(20, direction="left")
    for n in (1, 9, 3000, 30_000):
        text = "green grass is the blue sky " * n + "the grass"
        (encoded,) = tokenizer.encode([text], prefix, "end")
        assert tokenizer.cut(encoded.ids, "end").tolist() == other.encode(prefix + text).ids
        assert encoded.exact == (n <= 9)


def test_the_end_of_blanks_is_read(tokenizer: TextTokenizer) -> None:
    """Of a text with more blanks than are read, the words at its end are kept, with the prefix."""
    (expected,) = tokenizer.encode(["blue sky"], "the sky: ")
    for text in (" " * 100_000 + "blue sky", "blue " * 5000 + " " * 60_000 + "blue sky"):
        (encoded,) = tokenizer.encode([text], "the sky: ", "end")
        assert not encoded.exact
        assert np.array_equal(tokenizer.cut(encoded.ids, "end"), expected.ids)


def test_pieces_are_what_is_encoded(tokenizer: TextTokenizer) -> None:
    """Pieces have the ids of `encode`, and their spans give back the bytes of the prefixed text."""
    texts = ["blue  sky", "é sky", "the sky: blue", ""]
    encoded = tokenizer.encode(texts, "the sky: ")
    found = tokenizer.pieces(texts, "the sky: ")
    for text, one, pieces in zip(texts, encoded, found, strict=True):
        whole = (text if text.startswith("the sky: ") else "the sky: " + text).encode()
        assert [piece.id for piece in pieces] == one.ids.tolist()
        first, *inner, last = pieces
        assert (first.text, first.span, last.text) == ("[CLS]", None, "[SEP]")
        for piece in inner:
            assert piece.span is not None
            assert whole[slice(*piece.span)].decode() == piece.text
    bare = tokenizer.pieces(["blue sky"], add_special_tokens=False)
    assert [piece.text for piece in bare[0]] == ["blue", "sky"]


def test_decode(tmp_path: Path) -> None:
    """Ids become the text again, with special tokens or without."""
    made: Any = make_tokenizer()
    made.add_special_tokens(["[CLS]", "[SEP]"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", max_tokens=20)
    ids = tokenizer.encode(["blue sky"])[0].ids.tolist()
    assert tokenizer.decode(ids) == "blue sky"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[CLS] blue sky [SEP]"
