"""An engine without a model: deterministic vectors, and faults on demand."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matryo.catalog.manifest import Manifest
from matryo.catalog.reading import read_manifest
from matryo.core.choices import Precision
from matryo.engine import (
    BatchResult,
    Encoded,
    EngineFacts,
    EngineLimits,
    Interrupt,
    Interrupted,
    Side,
    Token,
    TokenIds,
    most_chars,
)
from matryo.engine.postprocess import FloatArray, l2_normalize

MODELS = Path(__file__).parent.parent / "models"
NOMIC = read_manifest(MODELS / "nomic-embed-text-v1.5")
MINILM = read_manifest(MODELS / "all-minilm-l6-v2")

CLS, SEP, UNKNOWN = 1, 2, 0
SPECIALS = {CLS: "[CLS]", SEP: "[SEP]"}

LIMITS = EngineLimits(
    solo_tokens=512,
    min_batch_tokens=64,
    max_batch_tokens=1024,
    max_scores=1 << 21,
    score_tokens=1 / 4096,
    run_tokens=16,
    workers=2,
    threads=1,
)


class FakeEngine:
    """One token for each word, one vector for each token sequence.

    Args:
        manifest: the model it pretends to be.

    Attributes:
        facts: hashes that stand for files of that model.
        limits: those of an engine on two cores.
        batches: the token counts of every batch it ran.
        seen: every text it tokenised.
        before: called with each batch's texts on the worker thread; may wait, or raise.
        on_tokenize: called with the texts of each call of `tokenize`, likewise.
        delay_s: how long a run takes.
        gate: runs wait until it is set.
    """

    def __init__(self, manifest: Manifest = NOMIC) -> None:
        self.manifest = manifest
        self.precision: Precision = "fp32"
        self.fingerprint = f"{manifest.id}/fp32/fake"
        self.facts = EngineFacts(
            weights_sha256=hashlib.sha256(f"{manifest.id} weights".encode()).hexdigest(),
            tokenizer_sha256=hashlib.sha256(f"{manifest.id} tokenizer".encode()).hexdigest(),
            artifact_sha256=hashlib.sha256(f"{manifest.id} artefact".encode()).hexdigest(),
            native=0,
            onnxruntime="0.0",
        )
        self.limits = LIMITS
        self.batches: list[list[int]] = []
        self.seen: list[str] = []
        self.before: Callable[[Sequence[TokenIds]], None] = lambda _: None
        self.on_tokenize: Callable[[Sequence[str]], None] = lambda _: None
        self.delay_s = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False
        self._lock = threading.Lock()

    def tokenize(
        self, texts: Sequence[str], prefix: str = "", side: Side = "start"
    ) -> list[Encoded]:
        """A token for each word, between CLS and SEP; `UNKNOWN` for one with U+FFFD."""
        self.on_tokenize(texts)
        most = most_chars(self.manifest.tokenizer.max_tokens)
        read = [text[:most] if side == "start" else text[-most:] for text in texts]
        whole = [text if self._is_prefixed(_words(text)) else prefix + text for text in read]
        self.seen.extend(whole)
        return [
            Encoded(np.array([CLS, *map(_word_id, _words(text)), SEP]), max(0, len(given) - most))
            for text, given in zip(whole, texts, strict=True)
        ]

    def _is_prefixed(self, words: Sequence[object]) -> bool:
        owns = [_words(prefix) for prefix in self.manifest.prefixes]
        return any(
            words[: len(own)] in (own, [_word_id(word) for word in own]) for own in owns if own
        )

    @property
    def unknown_id(self) -> int:
        """Of words with U+FFFD."""
        return UNKNOWN

    @property
    def vocab_size(self) -> int:
        """Words of three bytes."""
        return 3 + (1 << 24)

    def from_ids(self, ids: Sequence[int], prefix: str) -> Encoded:
        """The ids and those of the prefix, between CLS and SEP."""
        before = [] if self._is_prefixed(list(ids)) else [_word_id(word) for word in _words(prefix)]
        return Encoded(np.array([CLS, *before, *ids, SEP]))

    def pieces(
        self, texts: Sequence[str], prefix: str = "", *, add_special_tokens: bool = True
    ) -> list[list[Token]]:
        """A token for each word, as `tokenize` has them."""
        self.on_tokenize(texts)
        return [self._pieces(text, prefix, around=add_special_tokens) for text in texts]

    def _pieces(self, text: str, prefix: str, *, around: bool) -> list[Token]:
        whole = text if self._is_prefixed(_words(text)) else prefix + text
        found: list[Token] = []
        at = 0
        for word in _words(whole):
            start = whole.index(word, at)
            at = start + len(word)
            span = tuple(len(whole[:end].encode()) for end in (start, at))
            found.append(Token(_word_id(word), word, special=False, span=(span[0], span[1])))
        if not around:
            return found
        first, last = (Token(n, name, special=True, span=None) for n, name in SPECIALS.items())
        return [first, *found, last]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The ids in decimal, and the names of special tokens."""
        if skip_special_tokens:
            ids = [token for token in ids if token not in SPECIALS]
        return " ".join(SPECIALS.get(token, str(token)) for token in ids)

    def cut(self, ids: TokenIds, side: Side = "start") -> TokenIds:
        """The first tokens and SEP, or CLS and the last tokens."""
        limit = self.manifest.tokenizer.max_tokens
        if len(ids) <= limit:
            return ids
        if side == "start":
            return np.append(ids[: limit - 1], SEP)
        return np.concatenate([[CLS], ids[len(ids) - limit + 1 :]])

    def embed(
        self,
        texts: Sequence[TokenIds],
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,
        interrupt: Interrupt | None = None,
    ) -> BatchResult:
        """`vector` of each text, after whatever the test asked for."""
        started = time.perf_counter()
        assert self.gate.wait(30), "a test forgot to open the gate"
        self.before(texts)
        if self.delay_s:
            time.sleep(self.delay_s)
        if interrupt and interrupt.is_set:
            raise Interrupted
        with self._lock:
            self.batches.append([len(ids) for ids in texts])
        vectors = [
            self.vector(ids, size) if unit else self.raw(ids, size)
            for ids, size, unit in zip(
                texts, dimensions, normalize or [True] * len(texts), strict=True
            )
        ]
        return BatchResult(vectors, 0, time.perf_counter() - started, 0.0)

    def hidden_states(self, ids: TokenIds) -> FloatArray:
        """A unit vector for each token, by its id."""
        native = self.manifest.output.dimensions.native
        return np.stack([self.vector(np.array([token]), native) for token in ids])

    def vector(self, ids: TokenIds, dimensions: int) -> FloatArray:
        """What `embed` gives for one text."""
        return l2_normalize(self.raw(ids, dimensions)[None])[0]

    def raw(self, ids: TokenIds, dimensions: int) -> FloatArray:
        """What `embed` gives for one text without the last step."""
        seed = int.from_bytes(hashlib.sha256(ids.astype("<i8").tobytes()).digest()[:8], "little")
        native = self.manifest.output.dimensions.native
        row = np.random.default_rng(seed).standard_normal((1, native), dtype=np.float32)
        return row[0, :dimensions]

    def expected(self, text: str, dimensions: int | None = None) -> FloatArray:
        """The vector of a text as the tokenizer gets it, prefix included."""
        size = dimensions or self.manifest.output.dimensions.native
        return self.vector(self.tokenize([text])[0].ids, size)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def _words(text: str) -> list[str]:
    """Words between white space; a colon ends one, as it does for WordPiece."""
    return re.findall(r"[^\s:]*:|[^\s:]+", text)


def _word_id(word: str) -> int:
    if "\N{REPLACEMENT CHARACTER}" in word:
        return UNKNOWN
    return 3 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:3], "little")


def as_float32(values: Any) -> FloatArray:
    """The vector of a response, as its client holds it."""
    return np.asarray(values, dtype=np.float32)
