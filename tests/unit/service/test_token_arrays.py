"""Token arrays: decoded like tiktoken does, refused with their place."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from matryo.core.errors import InvalidRequest
from matryo.service.request import Texts
from matryo.service.token_arrays import SPECIAL_TOKENS, TokenDecoder, check_own
from matryo.store.encodings import find_table
from matryo.store.layout import Store

# Of the file that tiktoken would fetch, a copy comes with packages that tests need anyway.
TABLE = find_table(Store(Path("none")))
DECODER = TokenDecoder(lambda: TABLE)
TEXTS = (
    "The sky is blue.",
    "Größe, naïve café",
    "привет мир",
    "你好，世界",
    "こんにちは世界",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "γειά σου κόσμε",
    "🎉👩‍👩‍👧‍👦 emoji \u200d joined",
    "def f(x):\n\treturn x ** 2\n",
    " \n\t  ",
    "<|endoftext|>",
)


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    """OpenAI's own implementation, over the same table."""
    assert TABLE
    patch = pytest.MonkeyPatch()
    patch.setenv("TIKTOKEN_CACHE_DIR", str(TABLE.parent))
    encoding = tiktoken.get_encoding("cl100k_base")
    patch.undo()
    return encoding


def arrays(*ids: list[int]) -> Texts:
    """Several texts as ids."""
    return Texts(token_arrays=list(ids))


def decode(texts: Texts, decoder: TokenDecoder = DECODER) -> list[str]:
    """The strings of arrays, checked first."""
    decoder.check(texts)
    return [decoder.decode(ids, 1 << 20) for ids in texts.token_arrays]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(reference: tiktoken.Encoding, text: str) -> None:
    """What a client encoded comes back as it was."""
    assert decode(arrays(reference.encode_ordinary(text))) == [text]


def test_special_tokens(reference: tiktoken.Encoding) -> None:
    """They are the text that stands for them."""
    assert reference.n_vocab == max(SPECIAL_TOKENS) + 1
    ids = [*SPECIAL_TOKENS, 100255]
    assert decode(arrays(ids)) == [reference.decode(ids)]


@given(st.lists(st.integers(0, 100255), min_size=1, max_size=30))
def test_any_ids(ids: list[int]) -> None:
    """Bytes of a whole array are joined first; what is no UTF-8 then becomes U+FFFD."""
    assert TABLE
    pieces = DECODER._load()
    (text,) = decode(arrays(ids))
    assert text == b"".join(pieces[i] for i in ids).decode(errors="replace")


def test_cut_characters(reference: tiktoken.Encoding) -> None:
    """An array cut within a character: the half is replaced, the rest stays."""
    ids = reference.encode_ordinary("語🎉")
    assert decode(arrays(ids[:-1])) == ["語\ufffd"]


@pytest.mark.parametrize("bad", [100256, 100261, 100275, 100277, -1, 1 << 63, -(1 << 63)])
def test_unknown_ids(bad: int) -> None:
    """Outside the vocabulary: the place, the id, and what there is."""
    with pytest.raises(InvalidRequest) as caught:
        decode(arrays([1], [2, bad]))
    assert caught.value.message.startswith(f"Invalid 'input[1][1]': {bad} is not a token id")
    assert "cl100k_base has 0 to 100255" in caught.value.message
    with pytest.raises(InvalidRequest, match=r"Invalid 'input\[2\]'"):
        decode(Texts(token_arrays=[[1, 2, bad]], is_list=False))


def test_no_table() -> None:
    """Without a table the error says what to install, set or send; one that comes later serves."""
    there: list[Path] = []
    decoder = TokenDecoder(lambda: there[0] if there else None)
    with pytest.raises(InvalidRequest) as caught:
        decode(arrays([1]), decoder)
    for remedy in ("matryo pull cl100k_base", "matryo[cl100k]", "MATRYO_TOKEN_INPUT=model"):
        assert remedy in caught.value.message
    assert TABLE
    there.append(TABLE)
    assert decode(arrays([9906]), decoder) == ["Hello"]


def test_own_ids() -> None:
    """The model's own ids are held against its vocabulary."""
    check_own(arrays([0, 9], [5]), 10, "m")
    with pytest.raises(
        InvalidRequest, match=r"'input\[1\]\[1\]': 10 is not a token id; m has 0 to 9"
    ):
        check_own(arrays([0, 9], [5, 10]), 10, "m")
    with pytest.raises(InvalidRequest, match=r"'input\[1\]\[0\]': -1"):
        check_own(arrays([0], [-1]), 10, "m")


def test_an_array_is_decoded_as_far_as_it_is_read() -> None:
    """Ids that stand for many blanks do not fill the memory: decoding ends soon after the bound."""
    table = DECODER._load()
    blanks = next(token for token, piece in enumerate(table) if piece == b" " * 81)
    ids = [blanks] * 100_000  # 8 MB
    text = DECODER.decode(ids, 1000)
    assert 1000 < len(text) < 200_000
    assert DECODER.decode(ids[:20], 1000) == " " * 81 * 20
    assert DECODER.count_bytes([blanks, blanks, -1, 100256, 1 << 70]) == 162
