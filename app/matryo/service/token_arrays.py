"""Token arrays: ids of OpenAI's vocabulary back to text.

LangChain's default client sends ids in place of strings. A server only has to decode, and needs
nothing but a table of byte strings for that (cl100k_base: 100,256 ranks and five special tokens):
neither tiktoken nor its BPE. The bytes of a whole array are joined before they are decoded,
because one character may be spread over several tokens. A few ids may stand for many blanks: arrays
are decoded one by one, right before they are tokenised, and only as far as a text is read.

Source: openai/tiktoken, `tiktoken_ext/openai_public.py` and `tiktoken/load.py`.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from matryo.core.errors import InvalidRequest
from matryo.service.request import Texts

SPECIAL_TOKENS = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}
LAST_RANK = 100255
_NAME = "cl100k_base"
_HOLE = b""  # no token is empty
_HOLES = frozenset(range(LAST_RANK + 1, max(SPECIAL_TOKENS) + 1)) - SPECIAL_TOKENS.keys()
_STEP = 1024  # ids; one stands for up to 128 blanks
_BYTES_PER_CHAR = 4  # of UTF-8, at most


class TokenDecoder:
    """Ids of cl100k_base to text; the table is read when the first ids come.

    Args:
        find_table: path of the verified `cl100k_base.tiktoken`, or None while there is none.
    """

    def __init__(self, find_table: Callable[[], Path | None]) -> None:
        self._find_table = find_table
        self._table: list[bytes] = []
        self._lock = threading.Lock()

    def available(self) -> bool:
        """Whether there is a table to decode with."""
        return bool(self._table) or self._find_table() is not None

    @property
    def loaded(self) -> bool:
        """Whether the table was read."""
        return bool(self._table)

    def check(self, texts: Texts) -> None:
        """Hold every token array against the vocabulary, before any of them is decoded.

        Raises:
            InvalidRequest: an id outside the vocabulary, or no table on this machine.
        """
        size = len(self._load())
        known = f"{_NAME} has 0 to {LAST_RANK} and {', '.join(map(str, SPECIAL_TOKENS))}"
        for i, ids in enumerate(texts.token_arrays):
            _check(texts, i, size, known)
            if not _HOLES.isdisjoint(ids):
                j = next(j for j, token in enumerate(ids) if token in _HOLES)
                raise _unknown(texts, i, j, known)

    def count_bytes(self, ids: Sequence[int]) -> int:
        """Bytes of the string of one array; ids outside the vocabulary count as none."""
        table = self._load()
        return sum(len(table[token]) for token in ids if 0 <= token < len(table))

    def decode(self, ids: Sequence[int], most_chars: int) -> str:
        """The string of one array that `check` let pass.

        Bytes that are no UTF-8, as in an array cut within a character, become U+FFFD.

        Args:
            ids: of the text.
            most_chars: a text with more characters may be cut anywhere behind them.
        """
        table = self._load()
        pieces: list[bytes] = []
        n_bytes = 0
        for start in range(0, len(ids), _STEP):
            if n_bytes > _BYTES_PER_CHAR * (most_chars + 1):
                break
            piece = b"".join([table[token] for token in ids[start : start + _STEP]])
            pieces.append(piece)
            n_bytes += len(piece)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _load(self) -> list[bytes]:
        with self._lock:
            if not self._table:
                path = self._find_table()
                if path is None:
                    raise InvalidRequest(
                        "Arrays of token ids need the cl100k_base vocabulary, which this server "
                        "does not have. Its operator can run `matryo pull cl100k_base`, or "
                        "install matryo[cl100k]; or set MATRYO_TOKEN_INPUT=model, if the ids are "
                        "the served model's own. Or send strings. (LangChain: "
                        "OpenAIEmbeddings(check_embedding_ctx_length=False).)",
                        param="input",
                        code="tokens_not_supported",
                    )
                self._table = _read(path)
            return self._table


def _read(path: Path) -> list[bytes]:
    """The bytes of each id; a list, because a dict of 100,256 takes 8 MB more."""
    table = [_HOLE] * (max(SPECIAL_TOKENS) + 1)
    for line in path.read_bytes().splitlines():
        piece, rank = line.split()
        table[int(rank)] = base64.b64decode(piece)
    for token, piece in SPECIAL_TOKENS.items():
        table[token] = piece
    return table


def check_own(texts: Texts, vocab_size: int, model_id: str) -> None:
    """Hold every token array against the served model's own vocabulary.

    Raises:
        InvalidRequest: an id outside of the vocabulary.
    """
    for i in range(len(texts.token_arrays)):
        _check(texts, i, vocab_size, f"{model_id} has 0 to {vocab_size - 1}")


def _check(texts: Texts, i: int, size: int, known: str) -> None:
    ids = texts.token_arrays[i]
    if min(ids) < 0 or max(ids) >= size:
        raise _unknown(texts, i, next(j for j, n in enumerate(ids) if not 0 <= n < size), known)


def _unknown(texts: Texts, i: int, j: int, known: str) -> InvalidRequest:
    """The error for an id that the vocabulary does not have; names the id's index."""
    position = texts.position(i)
    name = f"input[{j}]" if position is None else f"input[{position}][{j}]"
    return InvalidRequest(
        f"Invalid '{name}': {texts.token_arrays[i][j]} is not a token id; {known}.",
        param="input",
        code="invalid_value",
    )
