"""Prefixes on MiniLM's real tokenizer, with the prompts of e5 and of Nomic's models."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matryo.catalog.catalog import open_catalog
from matryo.core.environment import load_settings
from matryo.engine.tokenizer import TextTokenizer
from matryo.store.artifact import find_artifact
from matryo.store.layout import Store

pytestmark = [pytest.mark.golden, pytest.mark.timeout(600)]

SETTINGS = load_settings(None, model="all-minilm-l6-v2")
CATALOG = open_catalog(SETTINGS)
PROMPTS = {
    name: CATALOG.manifest(name).prefixes for name in ("e5-small-v2", "nomic-embed-text-v1.5")
}

_WORDS = st.sampled_from(
    [
        "search",
        "query",
        "document",
        "passage",
        "classification",
        "sky",
        "Blue",
        "naïve",
        "你好",
        "🎉",
        "[MASK]",
        "don't",
        "x",
    ]
)
_SIGNS = st.sampled_from([":", "_", " ", "  ", "\n", "\t", "\u200b", "\u0301", ".", "-", "##"])
_PREFIXES = st.sampled_from([text for own in PROMPTS.values() for text in own])
_PIECES = st.one_of(
    _WORDS,
    _SIGNS,
    _PREFIXES,
    _PREFIXES.map(str.rstrip),
    _PREFIXES.map(str.title),
    st.text(max_size=5),
)
_TEXTS = st.lists(_PIECES, max_size=7).map("".join)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, TextTokenizer]:
    """The real tokenizer, as each model would have it."""
    artifact = find_artifact(Store(SETTINGS.home), CATALOG.manifest("all-minilm-l6-v2"), "fp32")
    return {name: TextTokenizer(artifact.tokenizer, 512, own) for name, own in PROMPTS.items()}


def ids(tokenizer: TextTokenizer, text: str, prefix: str = "") -> list[int]:
    """Token ids of one text."""
    return tokenizer.encode([text], prefix)[0].ids.tolist()


@given(text=_TEXTS, name=st.sampled_from(sorted(PROMPTS)), n=st.integers(0, 3))
@settings(max_examples=2000, deadline=None)
def test_equal_tokens_give_equal_vectors(
    tokenizers: dict[str, TextTokenizer], text: str, name: str, n: int
) -> None:
    """Spellings that the tokenizer reads alike, and a text's own ids, give the same tokens.

    A vector depends on tokens alone, so equal tokens are equal vectors.
    """
    tokenizer, own = tokenizers[name], PROMPTS[name]
    prefix = own[n % len(own)]
    plain, prefixed = ids(tokenizer, text), ids(tokenizer, text, prefix)
    assert tokenizer.from_ids(plain, prefix).tolist() == prefixed
    assert prefixed in (plain, ids(tokenizer, prefix + text))
    if text.startswith(own):
        assert prefixed == plain
    spellings = (
        text.lower(),
        text.upper(),
        f" {text}\n",
        text.replace(": ", ":"),
        text.replace(":", ": "),
        text.replace(":", " :"),
        unicodedata.normalize("NFD", text),
    )
    for other in spellings:
        if ids(tokenizer, other) == plain:
            assert ids(tokenizer, other, prefix) == prefixed
