"""Texts to measure with: the same on every machine, and of the lengths that people send.

A machine that serves has no corpus at hand, and a random string is unlike text for a tokenizer.
Words of a few sentences, in a random order, have the lengths of words and the pieces of words that
text has. Speed depends on lengths alone, never on what a text says.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from matryo.engine import Engine, TokenIds

LENGTHS = (16, 128, 512)
"""Tokens of texts that the engine is measured with: a query, a paragraph, a page."""

_N_DOCUMENTS, _N_QUERIES = 512, 64
# Tokens of a document: median 96, a tenth above 280; of a query: 6 to 24. Package descriptions and
# passages of web pages are of such lengths.
_MEDIAN, _SPREAD = 96.0, 0.85
_LEAST, _MOST = 12, 1024
_QUERY = (6, 24)

_PROSE = """
a compiler translates source code into machine code and reports the errors of each file that it
was given the library gives programs a simple way to read and write archives over a network with
many small servers this package contains documentation for administrators who install services
on their own computers search engines find passages whose meaning is near to that of a question
although no word of the question occurs in them the river begins in the mountains and flows for
eight hundred kilometres through valleys forests and old towns before it meets the northern sea
in 1994 her second novel won a prize and was translated into twelve languages within two years
customers may return unopened goods within thirty days of delivery if they keep the receipt
"""
_WORDS = _PROSE.split()


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts with their token ids, as the model reads them.

    Attributes:
        documents: with prefix and special tokens in the ids.
        queries: likewise.
        by_length: ids of texts with `LENGTHS` tokens each, as far as the model takes such texts.
    """

    documents: list[str]
    document_ids: list[TokenIds]
    queries: list[str]
    query_ids: list[TokenIds]
    by_length: dict[int, list[TokenIds]]


def make_sample(engine: Engine, n_documents: int = _N_DOCUMENTS, seed: int = 0) -> Sample:
    """The texts for an engine; the same seed always gives the same texts.

    Args:
        engine: of the model, whose limit bounds the lengths.
        n_documents: how many documents there are.
        seed: of the random choices.
    """
    chance = random.Random(seed)
    limit = engine.manifest.tokenizer.max_tokens
    most = min(_MOST, limit - 8)  # prefix and special tokens
    lengths = [
        max(_LEAST, min(most, round(chance.lognormvariate(0, _SPREAD) * _MEDIAN)))
        for _ in range(n_documents)
    ]
    documents = [_text(chance, n) for n in lengths]
    queries = [_text(chance, chance.randint(*_QUERY)) for _ in range(_N_QUERIES)]
    manifest = engine.manifest
    return Sample(
        documents,
        _ids(engine, documents, manifest.prefix("document")),
        queries,
        _ids(engine, queries, manifest.prefix("query")),
        {n: _of_length(engine, chance, n) for n in LENGTHS if n <= limit},
    )


def _text(chance: random.Random, n_words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=n_words)).capitalize() + "."


def _ids(engine: Engine, texts: Sequence[str], prefix: str) -> list[TokenIds]:
    return [engine.cut(encoded.ids) for encoded in engine.tokenize(texts, prefix)]


def _of_length(engine: Engine, chance: random.Random, n_tokens: int) -> list[TokenIds]:
    """Ids of texts with so many tokens: those of longer texts, without some of the middle."""
    found: list[TokenIds] = []
    for ids in _ids(engine, [_text(chance, n_tokens) for _ in range(8)], ""):
        assert len(ids) >= n_tokens  # a word is at least one token
        cut = ids[:n_tokens].copy()
        cut[-1] = ids[-1]
        found.append(cut)
    return found
